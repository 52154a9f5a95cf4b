"""What a plan says of plug-ins that have changed since runs were finished."""

from kdbench.planning.plan import changed_plugins, hashes_of_plugins
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite.specs import Adapter, DatasetSpec, Recipe, RunSpec, Supervised, WeightedTerm


RECIPE = Recipe(epochs=1, batch=16, lr=0.1)
ACCURACY = Accuracy(epoch=1, top1=50.0, top5=90.0)
DIGITS = DatasetSpec(name="digits")
TEACHER = Supervised(network="resnet8", dataset=DIGITS, recipe=RECIPE)


def spec(trial, code, part=None):
    """A run with a term of the user's own, whose code is known by one letter."""
    adapters = ()
    if part:
        code_of_part = part * 64
        adapters = (
            Adapter(parent=TEACHER, dataset=DIGITS, term="own:Part", source_sha256=code_of_part, recipe=RECIPE),
        )
    own = WeightedTerm(name="own:Mine", source_sha256=code * 64)
    terms = (WeightedTerm(name="ce"), own)
    return RunSpec(
        student="resnet8", teacher=TEACHER, terms=terms, dataset=DIGITS, recipe=RECIPE, trial=trial, adapters=adapters
    )


def finish(store, run):
    record = store.run(run.id)
    record.begin(run.canonical())
    scores = {"last": ACCURACY, "best": ACCURACY}
    record.finish(Result(id=run.id, kind="run", train_images=1, test_images=1, weights_sha256="", **scores), {})


def test_other_code_of_finished_runs_is_told(tmp_path, monkeypatch):
    store = Store(tmp_path)
    for trial in range(3):
        finish(store, spec(trial, "a"))
    finish(store, spec(0, "a", part="e"))
    store.run(spec(1, "c").id).begin(spec(1, "c").canonical())
    assert changed_plugins([spec(trial, "b") for trial in range(2)], store) == [
        "own:Mine has changed since 2 finished runs: not reused."
    ]
    assert changed_plugins([spec(0, "a", part="f")], store) == [
        "own:Part has changed since 1 finished run: not reused."
    ]
    stored = spec(0, "a", part="e")
    assert hashes_of_plugins(stored.canonical()) == stored.plugins == {"own:Mine": "a" * 64, "own:Part": "e" * 64}

    monkeypatch.setattr(Store, "records", None)
    settled = [spec(0, "a"), spec(1, "a")]
    assert changed_plugins(settled, store) == [], "no record is read where no plug-in is to be trained"
