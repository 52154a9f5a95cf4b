"""How long work takes: fitted to records, kept for other folders, assumed where nothing is known."""

import json
import random

import pytest

from kdbench.errors import BadInput
from kdbench.planning.cost import Work
from kdbench.planning.speed import ASSUMED, Sample, Speed, choose, fitted, known_speeds, sample_of, samples, speeds_of
from kdbench.store.store import Store


EPYC, H100 = ("cpu", "AMD EPYC, 1 threads", "fp32"), ("gpu", "NVIDIA H100", "bf16")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def some_work(number):
    """Work of small and large networks, in large and small batches, as different as records are."""
    draw = random.Random(number)
    images, batches = 10 ** draw.uniform(3, 6), 10 ** draw.uniform(2, 4)
    return Work(
        macs=images * 10 ** draw.uniform(6, 9),
        activations=images * 10 ** draw.uniform(4, 6),
        layers=batches * draw.randint(6, 110),
        updates=batches * 10 ** draw.uniform(5, 7),
    )


@pytest.mark.parametrize("device", [EPYC, H100])
def test_costs_are_found_again_from_what_they_cost(device):
    """A machine whose arithmetic is four times slower than assumed and whose launches are three times faster."""
    assumed = ASSUMED[device[0]].costs
    true = Speed(device[0], (4 * assumed[0], assumed[1], assumed[2] / 3, 2 * assumed[3], assumed[4]))
    works = [some_work(number) for number in range(60)]
    speed = fitted([Sample(device, work, true.seconds(work)) for work in works[:40]])
    assert (speed.device, speed.precision, speed.records) == (device[1], device[2], 40)
    assert all(speed.seconds(work) == pytest.approx(true.seconds(work), rel=0.05) for work in works[40:])
    assert speed.error < 0.05


def test_one_record_scales_what_is_assumed():
    work = some_work(1)
    speed = fitted([Sample(EPYC, work, 3 * ASSUMED["cpu"].seconds(work))])
    assert speed.costs == pytest.approx([3 * cost for cost in ASSUMED["cpu"].costs])


def test_no_cost_is_negative():
    """Records that contradict each other: the more work, the less time."""
    found = [Sample(EPYC, some_work(3) * factor, 10 / factor) for factor in (1, 2, 5)]
    assert min(fitted(found).costs) >= 0


WORK = {"macs": 2e9, "activations": 0, "layers": 0, "updates": 0, "files": 0}


def record(folder, number, **fields):
    """A record's metadata file: two seconds of arithmetic."""
    device = {"kind": "cpu", "name": "AMD EPYC", "threads": 1}
    values = {"seconds": 2.0, "macs": 2e9, "work": WORK, "device": device, "precision": "fp32"}
    path = folder / "runs" / f"{number:012x}"
    path.mkdir(parents=True)
    (path / "metadata.json").write_text(json.dumps(values | fields))


def test_what_a_folder_says_is_kept_for_other_folders(tmp_path):
    for number in range(3):
        record(tmp_path / "here", number)
    (speed,) = known_speeds(Store(tmp_path / "here"))
    assert speed.seconds(Work(macs=1e9)) == pytest.approx(1.0, rel=0.05)
    assert known_speeds(Store(tmp_path / "elsewhere")) == [speed]
    record(tmp_path / "third", 1, device={"kind": "gpu", "name": "NVIDIA H100"})
    gpu, kept = known_speeds(Store(tmp_path / "third"))
    assert (gpu.device, kept) == ("NVIDIA H100", speed)
    assert [each.device for each in known_speeds(Store(tmp_path / "elsewhere"))] == ["NVIDIA H100", speed.device]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"x": 1}', '{"x": {"kind": "cpu", "costs": [1]}}', '{"x": {"costs": "a"}}']
)
def test_a_cache_that_cannot_be_read_says_nothing(tmp_path, text):
    record(tmp_path / "here", 1)
    known_speeds(Store(tmp_path / "here"))
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text(text)
    assert known_speeds(Store(tmp_path / "elsewhere")) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"work": {}},
        {"work": []},
        {"work": {"macs": "x"}},
        {"work": {"macs": -1.0}},
        {"seconds": 0.049},
        {"work": {"macs": 1e30}},
        {"seconds": "x"},
        {"device": {"kind": "tpu"}},
        {"device": 3},
    ],
)
def test_metadata_that_says_nothing_is_left_out(tmp_path, fields):
    record(tmp_path, 1, **fields)
    assert samples(Store(tmp_path)) == []
    assert sample_of({}) is None
    record(tmp_path, 2, seconds=0.05)
    (sample,) = samples(Store(tmp_path))
    assert (sample.device, sample.seconds, sample.work) == (EPYC, 0.05, Work(macs=2e9))


def test_of_many_records_some_are_read(tmp_path, monkeypatch):
    for number in range(40):
        record(tmp_path, number)
    monkeypatch.setattr("kdbench.planning.speed._SAMPLE", 10)
    assert len(samples(Store(tmp_path))) == 10


def test_the_speed_that_fits():
    slow, fast = (
        Speed("cpu", (cost,) * 5, name, records=1) for cost, name in ((2.0, "old, 1 threads"), (1.0, "new, 8 threads"))
    )
    gpu, half = (Speed("gpu", (0.1,) * 5, "NVIDIA H100", precision, 1) for precision in ("fp32", "bf16"))
    known = [slow, fast, gpu, half]
    assert choose(known) is slow
    assert choose(known, "new") is fast
    assert (choose(known, "gpu"), choose(known, "h100", "bf16")) == (gpu, half)
    assert choose([slow], "cpu", "bf16") is slow
    assert (choose([], ""), choose([slow], "gpu")) == (ASSUMED["cpu"], ASSUMED["gpu"])
    with pytest.raises(BadInput, match=r"--on a100: .*\(here: old, 1 threads, new, 8 threads, NVIDIA H100\)"):
        choose(known, "a100")


def test_each_device_and_precision_has_its_own():
    found = [Sample(device, some_work(1), 1.0) for device in (EPYC, H100, H100)]
    assert [(speed.device, speed.records) for speed in speeds_of(found)] == [(H100[1], 2), (EPYC[1], 1)]


def test_devices_divide_all_but_launches_and_updates():
    speed = Speed("gpu", (1.0, 10.0, 100.0, 1000.0, 10_000.0))
    work = Work(macs=6, activations=6, layers=1, updates=1, files=6)
    assert speed.seconds(work) == 6 + 60 + 60_000 + 100 + 1000
    assert speed.seconds(work, 3) == 2 + 20 + 20_000 + 100 + 2 * 1000


def test_an_assumed_gpu():
    seconds = ASSUMED["gpu"].seconds
    found = [seconds(work) for work in (Work(macs=1e13), Work(layers=1e5), Work(files=1000))]
    assert found == pytest.approx([1, 1, 1])


def test_a_speed_says_what_it_rests_on():
    assert str(ASSUMED["gpu"]) == "assumed for a GPU"
    speed = Speed("cpu", (1.0,) * 5, "AMD EPYC, 1 threads", records=12, error=0.074)
    assert str(speed) == "AMD EPYC, 1 threads, fp32, from 12 records, within 7% for half of them"


@pytest.mark.parametrize(
    ("kind", "costs"),
    [
        ("cpu", {"macs": 2.4e-11, "activations": 2.3e-9, "layers": 7e-5, "updates": 5e-9, "files": 7e-3}),
        ("gpu", {"macs": 1e-13, "activations": 2e-11, "layers": 1e-5, "updates": 2e-11, "files": 1e-3}),
    ],
)
def test_what_each_part_of_the_work_is_assumed_to_take(kind, costs):
    assert {name: ASSUMED[kind].seconds(Work(**{name: 1.0})) for name in costs} == costs
    assert ASSUMED[kind].seconds(Work(updates=1.0), 4) == 2 * costs["updates"]
    assert ASSUMED[kind].seconds(Work(macs=1.0, layers=1.0), 4) == costs["macs"] / 4 + costs["layers"]
