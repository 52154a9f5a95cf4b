"""Terms of the user's own in a worker: their code is what was planned, and it is kept with the results."""

import sys

import pytest

from kdbench.catalogue.plugins import locating_modules
from kdbench.catalogue.terms import term
from kdbench.suite.specs import WeightedTerm


CODE = """\
from kdbench.methods import Term
import planned_helpers

class Planned(Term):
    needs_teacher = False
    def forward(self, student, teacher, batch):
        return planned_helpers.loss(student.logits)
"""


@pytest.fixture
def planned(tmp_path):
    """planned(code=None): the use of a term in tmp_path, with its code as it is there or another."""
    (tmp_path / "planned_terms.py").write_text(CODE)
    (tmp_path / "planned_helpers.py").write_text("def loss(logits):\n    return logits.pow(2).mean()\n")
    finders = list(sys.meta_path)
    with locating_modules({"planned_terms": tmp_path, "planned_helpers": tmp_path}.get):
        name = "planned_terms:Planned"
        yield lambda code=None: WeightedTerm(name=name, source_sha256=code or term(name).source_sha256)
    sys.meta_path[:] = finders
    for module in ("planned_terms", "planned_helpers"):
        sys.modules.pop(module, None)


def test_the_code_is_kept_with_the_results(bench, make_run, planned):
    use, here = planned(), bench()
    run = make_run({"ce": 1}).model_copy(update={"terms": (WeightedTerm(name="ce"), use)})
    here.train(run)
    assert here.store.run(run.id).done()
    folder = here.store.source_folder(use.source_sha256)
    assert (folder / "planned_terms.py").read_text() == CODE
    assert (folder / "planned_helpers.py").is_file()
    assert sorted(path.name for path in folder.iterdir()) == ["planned_helpers.py", "planned_terms.py"]


def test_other_code_fails_by_name_and_leaves_its_neighbours_alone(bench, make_run, planned):
    plain, here = make_run({"ce": 1}), bench()
    edited = plain.model_copy(update={"terms": (WeightedTerm(name="ce"), planned("0" * 64))})
    here.train(plain, edited)
    failure = here.store.run(edited.id).failure()
    assert failure.reason.startswith("planned_terms:Planned is not what it was when the run was planned: ")
    assert "Run the same command again" in failure.reason
    assert here.store.run(plain.id).done()
    alone = bench("alone")
    alone.train(plain)
    assert here.files(plain) == alone.files(plain)
