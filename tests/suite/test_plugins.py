"""Terms of the user's own: their code is part of a run's id, and a suite's folder is where they are looked for last."""

import importlib.machinery
import os
import shutil
import sys

import pytest

from kdbench.catalogue.plugins import import_plugin, locating_modules, read_source
from kdbench.errors import BadInput, BadSuite
from kdbench.suite.load import load_suites
from kdbench.suite.methods import plugin_folders


TERM = """\
from kdbench.methods import Term
{imports}

class Mine({base}):
    def __init__(self, context, *, power: float = {power}):
        super().__init__(context)
    def forward(self, student, teacher, batch):
        {inner}
        return student.logits.sum() * 0
"""
SUITE = """\
protocol: smoke
dataset: digits
trials: 2
grid: {{teacher: resnet8, student: resnet8, method: [kd, {{name: mine, terms: {{ce: 1, "{name}": 1}}}}]}}
"""


def write(folder, module, imports="", base="Term", power=1.0, inner="pass"):
    """A term in folder/module.py, or further below for a dotted module."""
    path = folder.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TERM.format(imports=imports, base=base, power=power, inner=inner))
    return path


def ids(folder, module="ownlosses"):
    """The id of the run with kd, and that with the term of this module."""
    (folder / f"{folder.name}.yaml").write_text(SUITE.format(name=f"{module}:Mine"))
    (suite,) = load_suites([str(folder / f"{folder.name}.yaml")])
    return suite.runs[0].id, suite.runs[2].id


def test_an_edit_changes_the_id_and_a_move_does_not(tmp_path):
    first = tmp_path / "first"
    file = write(first, "ownlosses")
    kd, before = ids(first)
    moved = tmp_path / "elsewhere" / "second"
    shutil.copytree(first, moved)
    assert ids(moved) == (kd, before)
    state = file.stat()
    write(first, "ownlosses", power=2.0)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # neither time nor size tells
    assert ids(first)[0] == kd
    assert ids(first)[1] != before
    write(first, "ownlosses")
    assert ids(first) == (kd, before)


IMPORTS = [
    ("ownlosses", {"imports": "import helpers"}, "helpers.py"),
    ("ownlosses", {"imports": "from helpers import shape"}, "helpers.py"),
    ("ownlosses", {"imports": "import helpers"}, "deeper.py"),
    ("ownlosses", {"inner": "import helpers"}, "helpers.py"),
    ("ownlosses", {"imports": "from tools import scale"}, "tools/scale.py"),
    ("ownlosses", {"imports": "from tools import scale"}, "tools/__init__.py"),
    ("ownlosses", {"imports": "import tools.scale as s"}, "tools/scale.py"),
    ("ownlosses", {"imports": "from helpers import Base", "base": "Base"}, "helpers.py"),
    ("tools.losses", {"imports": "from . import scale"}, "tools/scale.py"),
    ("tools.losses", {"imports": "from .scale import anything"}, "tools/scale.py"),
    ("tools.losses", {"imports": "from tools import scale"}, "tools/scale.py"),
    ("tools.losses", {"inner": "from .scale import x"}, "tools/scale.py"),
    ("tools.losses", {}, "tools/__init__.py"),
    ("tools.losses", {}, "deeper.py"),
    ("bare.losses", {"imports": "from .scale import x"}, "bare/scale.py"),
    ("ownlosses", {}, None),
    ("tools.losses", {}, None),
]


@pytest.mark.parametrize(("module", "options", "counts"), IMPORTS)
def test_what_is_imported_of_the_same_package_or_folder_counts(tmp_path, module, options, counts):
    write(tmp_path, module, **options)
    files = {
        "helpers.py": "import deeper\nfrom kdbench.methods import Term\nclass Base(Term): pass\n",
        "deeper.py": "", "tools/__init__.py": "import deeper\n", "tools/scale.py": "", "bare/scale.py": "",
        "unrelated.py": "", "tools/unrelated.py": "", "random.py": "", "torch.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = ids(tmp_path, module)
    for name in ("unrelated.py", "tools/unrelated.py", "random.py", "torch.py"):
        (tmp_path / name).write_text("raise RuntimeError")
    assert ids(tmp_path, module) == before
    if counts:
        (tmp_path / counts).write_text(files[counts] + "# another comment\n")
        assert ids(tmp_path, module)[1] != before[1]


def test_the_module_of_an_ancestor_in_an_installed_package_counts(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    base = write(site, "otherpackage.bases", imports="from . import beside")
    (site / "otherpackage" / "beside.py").write_text("")
    monkeypatch.syspath_prepend(site)
    here = tmp_path / "here"
    write(here, "ownlosses", imports="import otherpackage.bases as bases", base="bases.Mine")
    before = ids(here)[1]
    (site / "otherpackage" / "beside.py").write_text("# of another package\n")
    assert ids(here)[1] == before
    base.write_text(base.read_text() + "# changed\n")
    assert ids(here)[1] != before


MISTAKES = [
    ("random", {}, "'random' is a module of Python's own library: give yours another name"),
    ("yaml", {}, r"'yaml' is .*, which hides .*yaml.py: give the latter another name"),
    ("absent", None, "cannot find the module 'absent': it must lie beside the suite, or be installed"),
    ("ownlosses", {"imports": "import notthere"}, r"ownlosses.py:2  imports 'notthere', which cannot be found"),
    ("ownlosses", {"imports": "import kdbench.methodz"}, "imports 'kdbench.methodz', which cannot be found"),
    ("ownlosses", {"imports": "from . import helpers"}, "ownlosses.py:2  imports relatively beyond its package"),
    ("tools.losses", {"imports": "from .gone import x"}, r"losses.py:2  imports 'tools.gone', which cannot be found"),
    ("tools.losses", {"imports": "from . import fast"}, r"'tools.fast' is compiled \(.*\), so nothing would tell old"),
    ("fast", None, r"the source of 'fast' cannot be read \(.*fast.*\), so nothing would tell old results"),
    ("ownlosses", {"imports": "from ownlosses2 import Mine", "base": "Mine"}, "go in a circle"),
    ("ownlosses", {"imports": "\0"}, "null byte"),
    ("ownlosses", {"imports": "from torch import nn", "base": "nn.Module"}, "is no loss term: it must be a subclass of"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "options", "message"), MISTAKES)
def test_what_cannot_be_told_apart_or_imported_is_refused(tmp_path, module, options, message):
    (tmp_path / "tools").mkdir()
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    for name in ("tools/fast", "fast"):
        (tmp_path / (name + suffix)).write_bytes(b"")
    write(tmp_path, "ownlosses2", imports="from ownlosses import Mine as Other", base="Other")
    if options is not None:
        write(tmp_path, module, **options)
    with pytest.raises(BadSuite, match=message):
        ids(tmp_path, module)


def test_a_conditional_import_may_fail(tmp_path):
    guarded = "try:\n    import notthere\nexcept ImportError:\n    notthere = None\n"
    write(tmp_path, "ownlosses", imports=guarded)
    assert len(set(ids(tmp_path))) == 2


def test_one_name_in_two_folders(tmp_path):
    for name, power in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        write(tmp_path / name, "ownlosses", power=power)
        ids(tmp_path / name)
    a, b, c = load_suites([str(tmp_path / name / f"{name}.yaml") for name in "abc"])
    assert a.runs[2].id == c.runs[2].id != b.runs[2].id
    (folder,) = plugin_folders([*a.specs.values(), *c.specs.values()]).values()
    assert folder in (tmp_path / "a", tmp_path / "c")
    with pytest.raises(BadInput, match=r"[ac]/ownlosses.py and .*b/ownlosses.py are both the module 'ownlosses'"):
        plugin_folders([*a.specs.values(), *b.specs.values()])


@pytest.fixture
def source(tmp_path, monkeypatch):
    """source(module): what is read of a module in tmp_path; modules that are imported on the way are forgotten."""
    before, finders = set(sys.modules), list(sys.meta_path)
    with locating_modules({"fresh": tmp_path, "freshpack": tmp_path}.get):
        yield lambda module: read_source(module, [])
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.meta_path[:] = finders


def test_the_code_that_was_read_is_what_is_imported(tmp_path, source):
    file = tmp_path / "fresh.py"
    file.write_text("value = 1\n")
    read = source("fresh")
    file.write_text("value = 2\n")
    assert import_plugin(read, "fresh").value == 1
    with pytest.raises(BadInput, match="other code of the module 'fresh' was imported before"):
        import_plugin(source("fresh"), "fresh")


def test_a_package_without_init_and_an_import_that_no_statement_names(tmp_path, source):
    (tmp_path / "freshpack").mkdir()
    hidden = (
        "import importlib\nfrom . import named\ndef late(): return importlib.import_module('.hidden', __package__)\n"
    )
    (tmp_path / "freshpack" / "losses.py").write_text(hidden)
    (tmp_path / "freshpack" / "named.py").write_text("value = 3\n")
    (tmp_path / "freshpack" / "hidden.py").write_text("")
    module = import_plugin(source("freshpack.losses"), "freshpack.losses")
    assert module.named.value == 3
    with pytest.raises(ImportError, match=r"no part of the run's identity, because no import statement .* names it"):
        module.late()
