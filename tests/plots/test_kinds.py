"""Each kind of picture of results whose every number is known: its data, worked out by hand, and how it looks."""

from itertools import cycle

import numpy as np
import pytest

from kdbench.errors import BadInput
from kdbench.plots.data import PlotOptions, Source, cells, swept
from kdbench.plots.kinds import draw
from kdbench.plots.views import finished as finished_runs
from kdbench.reporting.report import measured_report
from kdbench.store.store import Store
from kdbench.suite.selection import select


FIRST, SECOND = "resnet32x4 → vgg8", "resnet32x4 → resnet8x4"


@pytest.fixture
def shown(finished, looks_as_before):
    """Draw a kind of picture of a part of the runs, compare it with its baseline, and return its data."""
    suite, store = finished

    def drawn(kind, *only, **options):
        report = measured_report(select([suite], only), [store])
        picture = draw(kind, Source(report, PlotOptions(**options), ask=answers))
        looks_as_before(picture.figure, f"kind-{kind}")
        return picture.data

    return drawn


def test_curves_end_at_the_published_numbers(shown):
    data = shown("curves", "method=ce,semckd", "student=vgg8", metrics=("loss", "top1_error"))
    found = data[(data["panel"] == FIRST) & (data["method"] == "semckd")].set_index(["metric", "epoch"])
    assert found["mean"].dropna().to_dict() == {
        ("loss", 60): 4, ("loss", 120): 2, ("loss", 240): 1,
        ("top1_error", 60): 31.5, ("top1_error", 120): 29, ("top1_error", 240): 24,
    }  # fmt: skip
    assert found["published"].dropna().to_dict() == {("top1_error", 240): pytest.approx(100 - 75.27)}


def test_a_sweep_has_a_line_for_methods_without_the_setting(shown):
    data = shown("sweep", "method=ce,kd[temperature=2],kd[temperature=8]", over="temperature")
    found = data[data["panel"] == SECOND]
    assert list(zip(found["series"], found["temperature"].fillna(0), found["mean"], strict=True)) == [
        ("ce", 0, 68), ("kd", 2, 69.5), ("kd", 8, 68.5),
    ]  # fmt: skip


def test_pairs_of_layers_are_grouped_by_the_students(shown):
    data = shown("layer-pairs", "method=ce,semckd[pair=S1-T1],semckd[pair=S1-T3],semckd[pair=S2-T3]")
    found = data[data["panel"] == FIRST]
    assert list(zip(found["group"], found["series"], found["mean"], strict=True)) == [
        ("", "ce", 70), ("S1", "T1", 72.5), ("S1", "T3", 75.5), ("S2", "T3", 73.5),
    ]  # fmt: skip


def test_a_gap_is_closed_by_its_share_in_each_trial(shown):
    data = shown("gap", "method=ce,kd,semckd").set_index(["panel", "method"])
    shares = [100 * 5 / 11, 100 * 5 / 9]
    row = data.loc[FIRST, "kd"]
    assert (row["mean"], row["sd"], row["n"]) == pytest.approx((np.mean(shares), np.std(shares, ddof=1), 2))
    assert data.loc[(SECOND, "semckd"), "mean"] == pytest.approx((100 * 3 / 13 + 100 * 3 / 11) / 2)


def test_an_improvement_is_relative_to_what_the_other_adds(shown):
    data = (
        shown("improvement", "method=ce,kd,at,semckd", target="semckd")
        .set_index(["origin", "pair", "method"])["percent"]
        .sort_index()
    )
    assert data["measured", FIRST].to_dict() == pytest.approx({"kd": 20, "at": 200})
    published = 100 * (75.27 - 71.90) / (71.90 - 70.46)
    assert data["published", FIRST, "at"] == pytest.approx(published)


def test_a_cost_is_the_mean_of_the_trials(shown):
    data = shown("cost", "method=ce,kd,at").set_index(["panel", "method"])
    assert data.loc[FIRST, "seconds"].to_dict() == {"ce": 100.5, "kd": 102.5, "at": 104.5}
    assert data.loc[FIRST, "front"].to_dict() == {"ce": True, "kd": True, "at": False}


def test_measured_beside_published(shown):
    data = shown("scatter").set_index(["student", "method"])
    assert data.loc["vgg8", "verdict"].to_dict() == {"ce": "agrees", "kd": "higher", "at": "agrees", "semckd": "higher"}
    assert set(data.loc["resnet8x4", "verdict"]) == {"lower"}


def test_mean_ranks_over_pairs(shown):
    data = shown("cd", "method=ce,kd,at,semckd").set_index("method")
    assert data["rank"].to_dict() == {"ce": 4, "kd": 2, "at": 3, "semckd": 1}
    assert data.loc["ce", "critical_difference"] == pytest.approx(2.569 * (4 * 5 / (6 * 2)) ** 0.5, abs=1e-3)


def test_attention_is_that_of_the_last_epoch(shown):
    data = shown("attention", "method=semckd", "student=vgg8").set_index(["panel", "row", "column"])["mean"]
    assert data[FIRST].unstack().to_numpy() == pytest.approx(np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.45]]))


BINS = {"images": [4, 6, 20], "confidence": [1.0, 3.0, 19.0]}
TEACHERS = {"confusion": [[10, 0, 0], [0, 10, 0], [0, 0, 10]], "ece": 0.02, "right": [4, 6, 20], **BINS}
STUDENTS = [
    {"confusion": [[8, 2, 0], [0, 6, 4], [1, 0, 9]], "ece": 0.1, "right": [0, 3, 20], **BINS},
    {"confusion": [[6, 4, 0], [2, 6, 2], [1, 0, 9]], "ece": 0.2, "right": [0, 1, 20], **BINS},
]
"""Of the first and the second trial."""


def predictions(networks):
    trial = cycle(STUDENTS)
    return [TEACHERS if each["of"] == "teacher" else next(trial) for each in networks]


def answers(request):
    """What networks would give."""
    networks = request["networks"]
    match request["view"]:
        case "predictions":
            return {"classes": ["ant", "bee", "cat"], "networks": predictions(networks)}
        case "correlations":
            far = {"teacher": 0.0, "student": 0.25}
            return {
                "classes": ["ant", "bee"],
                "matrices": [[[1, far[each["of"]] - 0.1], [far[each["of"]] - 0.1, 1]] for each in networks],
            }
        case "layers":
            return [[[0.9, 0.1], [0.2, 0.3 + 0.1 * at]] for at in range(len(networks) // 2)]
        case "embeddings":
            points = [[[at, 0], [at, 1], [1, at], [2, at * at]] for at in range(len(networks))]
            labels = ["ant", "bee", "bee", "ant"]
            return {"classes": labels, "positions": [3, 5, 7, 8], "points": points, "perplexity": 1.0}
        case "gradcam":
            image = np.arange(48).reshape(4, 4, 3) * 5
            found = [{"maps": [[[0, 0.5], [1, 0.2]]] * 2, "predicted": ["ant", "cat"]} for _ in networks]
            shown = [image.tolist(), (255 - image).tolist()]
            return {"images": shown, "labels": ["ant", "bee"], "positions": [3, 5], "networks": found}


def test_accuracy_by_class_and_confusion_are_means_over_trials(shown):
    data = (
        shown("class-accuracy", "method=kd,at", "student=vgg8")
        .set_index(["panel", "method", "class"])["mean"]
        .sort_index()
    )
    assert data[FIRST, "teacher"].tolist() == [100, 100, 100]
    assert data[FIRST, "at"].to_dict() == {"ant": 70, "bee": 60, "cat": 90}


def test_confusion_is_a_share_of_the_true_class(shown):
    data = shown("confusion", "method=kd").set_index(["panel", "row", "column"])["percent"]
    assert data[f"{SECOND}: kd"].unstack().to_numpy().tolist() == [[70, 30, 0], [10, 60, 30], [10, 0, 90]]


def test_correlations_differ_by_their_absolute_difference(shown):
    data = shown("correlation", "method=kd,at", "student=vgg8")
    assert data["difference"].to_numpy() == pytest.approx(np.tile([0, 0.25, 0.25, 0], len(data) // 4))


def test_similarity_of_layers_is_a_mean_over_trials(shown):
    data = shown("similarity", "method=kd", "student=vgg8").set_index(["panel", "row", "column"])["cka"]
    assert data[f"{FIRST}: kd"].unstack().to_numpy() == pytest.approx(np.array([[0.9, 0.1], [0.2, 0.35]]))


def test_calibration_leaves_out_bins_of_few_images(shown):
    data = shown("calibration", "method=kd", "student=vgg8").set_index(["panel", "method", "bin"]).sort_index()
    found = data.loc[FIRST, "kd"]
    assert found["mean"].to_dict() == {2: pytest.approx(100 * (3 + 1) / 2 / 6), 3: 100}
    assert found["confidence"].to_dict() == {2: 50, 3: 95}
    assert found["ece"].tolist() == pytest.approx([15, 15])
    assert data.loc[FIRST, "teacher"]["ece"].tolist() == [2, 2]


def test_embeddings_in_the_plane(shown):
    data = shown("tsne", "method=kd")
    last = data[data["panel"] == f"{FIRST}: kd"]
    assert list(zip(last["image"], last["label"], last["x"], last["y"], strict=True)) == [
        (3, "ant", 3, 0), (5, "bee", 3, 1), (7, "bee", 1, 3), (8, "ant", 2, 9),
    ]  # fmt: skip


def test_heat_of_each_network_and_image(shown):
    data = shown("gradcam", "method=kd", "student=vgg8")
    assert len(data) == 2 * 2 * 2 * 2
    one = data[(data["method"] == "kd") & (data["image"] == 5)]
    assert list(zip(one["row"], one["column"], one["heat"], one["predicted"], strict=True)) == [
        (0, 0, 0, "cat"), (0, 1, 0.5, "cat"), (1, 0, 1, "cat"), (1, 1, 0.2, "cat"),
    ]  # fmt: skip


@pytest.fixture
def lacking(finished):
    """Why a kind of picture cannot be drawn of a part of the runs."""
    suite, store = finished

    def why(kind, *only, **options):
        with pytest.raises(BadInput) as caught:
            draw(kind, Source(measured_report(select([suite], only), [store]), PlotOptions(**options)))
        return str(caught.value)

    return why


@pytest.mark.parametrize(
    ("kind", "methods", "options", "message"),
    [
        ("bars", "ce", {"metrics": ("probe",)}, "these suites train no linear probes"),
        ("layer-pairs", "ce,kd", {}, "no method of these suites is named by a pair of layers"),
        ("gap", "kd", {}, "no trial has a method, the plain student (ce) and a better teacher"),
        ("improvement", "ce,kd,at", {}, "--target is missing"),
        ("improvement", "kd,semckd", {"target": "semckd"}, "these suites have no runs of ce"),
        ("improvement", "ce,semckd", {"target": "semckd"}, "nothing can be compared with semckd"),
        ("improvement", "ce,kd", {"target": "kdd"}, "--target kdd: no run has this method. Did you mean 'kd'?"),
        ("cost", "ce", {"metrics": ("second",)}, "--metric second: a cost is seconds or macs. Did you mean 'seconds'?"),
        ("curves", "ce", {"metrics": ("losss",)}, "--metric losss: no run of these records it. Did you mean 'loss'?"),
        ("sweep", "ce,kd", {}, "no setting varies: draw bars instead"),
        ("cd", "ce,kd", {}, "no critical difference: "),
        ("attention", "ce,kd", {}, "no run of these suites has recorded attention"),
        ("calibration", "ce", {}, "this picture needs networks"),
    ],
)
def test_what_results_lack_is_said(lacking, kind, methods, options, message):
    assert message in lacking(kind, f"method={methods}", **options)


def test_weights_that_are_not_there_are_counted(finished):
    suite, store = finished
    source = Source(measured_report(select([suite], ["method=ce,kd", "student=vgg8"]), [store]), PlotOptions())
    runs = {run.id: store.run(run.id) for run in source.report.suites[0].runs}
    for record in runs.values():
        record.weights_file.touch()
    assert set(finished_runs(source, trials=True)["run_id"]) == runs.keys()
    done, lost = [*finished_runs(source, trials=True)["run_id"]], []
    for more in ("", " and 1 more run", " and 2 more runs"):
        lost.append(done[len(lost)])
        runs[lost[-1]].weights_file.unlink()
        with pytest.raises(
            BadInput, match=rf"^the weights of [0-9a-f]{{12}}{more} are not there, and this picture needs"
        ):
            finished_runs(source, trials=True)


def test_without_a_finished_run_published_numbers_alone_are_drawn(finished, tmp_path):
    suite, _ = finished
    source = Source(measured_report([suite], [Store(tmp_path)]), PlotOptions())
    assert cells(source)["published"].notna().any()
    assert draw("bars", source).data["published"].notna().any()
    unpublished = Source(
        measured_report(select([suite], ["method=kd[temperature=2]"]), [Store(tmp_path)]), PlotOptions()
    )
    for kind, of in (("cost", source), ("bars", unpublished)):
        with pytest.raises(BadInput, match=r"^no run of own is finished\. "):
            draw(kind, of)


def test_a_sweep_takes_the_one_setting_that_varies(finished):
    suite, store = finished
    chosen = select([suite], ["method=kd,kd[temperature=2],kd[temperature=8]"])
    data, over = swept(Source(measured_report(chosen, [store]), PlotOptions()), None)
    assert over == "temperature"
    assert set(data["series"]) == {"kd[temperature]", "kd"}
