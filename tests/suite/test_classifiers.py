"""Whether weights keep their classifier, and whether they are trained further: all sources, strategies and choices."""

import json
import math

import pytest

from kdbench.errors import BadSuite
from kdbench.suite.load import load_suite
from kdbench.suite.specs import FineTuned, Imported, lineage


DATA = {100: "{name: cifar100}", 10: "{name: digits}", 1000: "{name: imagenet}"}
SUITE = """
protocol: {{base: crd, node_embedding: 64, batch: 256}}
dataset: {data}
trials: 1
teachers: {{mine: {teacher}}}
grid: {{teacher: mine, student: resnet18, method: kd, strategy: {strategy}}}
"""

KEPT, DROPPED = True, False
TABLE = {
    # source and its classifier, the data set's classes: keeps it or not, and what fine_tune unsaid means by strategy
    ("published", 1000, 1000): (KEPT, {"pretrained": False, "new layers": False}),
    ("published", 1000, 100): (DROPPED, {"pretrained": True, "new layers": True}),
    ("file", 100, 100): (KEPT, {"pretrained": False, "new layers": False}),
    ("file", 10, 100): (DROPPED, {"pretrained": None, "new layers": False}),
    ("file", 0, 100): (DROPPED, {"pretrained": None, "new layers": False}),
    ("imported", 100, 100): (KEPT, {"pretrained": False, "new layers": False}),
    ("imported", 10, 100): (DROPPED, {"pretrained": None, "new layers": False}),
    ("unknown", None, 100): (KEPT, {"pretrained": False, "new layers": False}),
}  # None: refused, since nothing gives class scores


def weights(source, classes, folder):
    if source == "published":
        return "network: rn50, weights: torchvision"
    if source != "file":
        return f"network: resnet18, weights: 'sha256:{'0' * 64}'"
    entries, place = {}, 0
    for name, shape in {"conv1.weight": (4, 3, 3, 3), **({"fc.weight": (classes, 512)} if classes else {})}.items():
        length = 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + length]}
        place += length
    text = json.dumps(entries).encode()
    (folder / "file.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(place))
    return "network: resnet18, weights: file.safetensors"


@pytest.mark.parametrize("strategy", ["pretrained", "sequential", "simultaneous"])
@pytest.mark.parametrize("fine_tune", [None, True, False])
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_keep_or_lose_the_classifier(tmp_path, case, fine_tune, strategy):
    source, classes, wanted = case
    kept, unsaid = TABLE[case]
    said = "" if fine_tune is None else f", fine_tune: {str(fine_tune).lower()}"
    text = weights(source, classes, tmp_path)
    (tmp_path / "suite.yaml").write_text(
        SUITE.format(data=DATA[wanted], teacher="{" + text + said + "}", strategy=strategy)
    )

    def known(document):
        if source == "imported":
            document.class_counts = lambda sha256, key: frozenset({classes})

    tuned = fine_tune
    if fine_tune is None:
        tuned = unsaid["pretrained" if strategy == "pretrained" else "new layers"]
    elif not fine_tune and not kept and strategy == "pretrained":
        tuned = None
    if tuned is None:
        with pytest.raises(
            BadSuite, match=r"mine needs a classifier for the 100 classes of cifar100, and its .* fine_tune"
        ):
            load_suite(tmp_path / "suite.yaml", known=known)
        return
    (run,) = load_suite(tmp_path / "suite.yaml", known=known).runs
    first, *further = lineage(run.spec.teacher)
    assert isinstance(first, Imported)
    assert first.weights.classifier == kept
    assert any(isinstance(stage, FineTuned) for stage in further) == tuned


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("{network: clip-vit-b32, fine_tune: true}", "clip-vit-b32 is an encoder, which is used as it is"),
        ("{network: resnet18, weights: random, fine_tune: true}", "is trained from fresh weights"),
        ("{network: resnet18, pretraining: simclr, fine_tune: false}", "and SimCLR trains none: use fine_tune: true"),
    ],
)
def test_where_fine_tune_says_nothing(load, teacher, message):
    with pytest.raises(BadSuite) as error:
        load(SUITE.format(data=DATA[100], teacher=teacher, strategy="pretrained"))
    assert message in str(error.value)
