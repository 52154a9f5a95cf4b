"""Images of one's own: how each kind of picture becomes pixels, what the content's hash is, and what is refused."""

import os
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kdbench.datafiles import own_images, own_pictures
from kdbench.datafiles.own_files import ImageSource
from kdbench.datafiles.own_images import contact_sheet, facts_of, list_streamed, load, read, square
from kdbench.datafiles.own_pictures import upright
from kdbench.errors import BadInput


def picture(path, value=100, mode="L", side=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), value).save(path)


@pytest.fixture
def pets(tmp_path):
    """A folder with train/ and val/ of two classes."""
    root = tmp_path / "pets"
    for part, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                picture(root / part / name / f"{number}.png", 40 * label + 10 * number + (5 if part == "val" else 0))
    return root


def folder(path, **options):
    return ImageSource("folder", str(path), **{"size": 12, **options})


def test_a_folder_of_classes(pets):
    found = read(folder(pets))
    assert found.train.images.shape == (8, 3, 12, 12)
    assert found.train.images[:, 1, 5, 5].tolist() == [0, 10, 20, 30, 40, 50, 60, 70]
    assert found.train.labels.tolist() == [0] * 4 + [1] * 4
    assert found.test.images[:, 2, 0, 0].tolist() == [5, 15, 45, 55]
    facts = found.facts
    assert (facts["classes"], facts["size"], facts["train"], facts["test"]) == (2, 12, 8, 4)
    assert facts["class_names"] == ["cat", "dog"]
    values = np.arange(8) * 10 / 255
    assert facts["mean"] == [round(float(values.mean()), 4)] * 3
    assert facts["std"] == [round(float(values.std()), 4)] * 3


def test_the_content_is_the_identity(pets, tmp_path):
    before = facts_of(folder(pets))["sha256"]
    moved = shutil.copytree(pets, tmp_path / "elsewhere")
    (moved / "train" / "cat" / "0.png").rename(moved / "train" / "cat" / "00.png")
    picture(moved / "train" / "cat" / ".hidden.png")
    (moved / "train" / "cat" / "notes.txt").write_text("no picture")
    assert facts_of(folder(moved))["sha256"] == before
    assert facts_of(folder(pets, size=10))["sha256"] != before
    picture(moved / "train" / "cat" / "00.png", 1)
    assert facts_of(folder(moved))["sha256"] != before
    (pets / "train" / "cat").rename(pets / "train" / "cats")
    (pets / "val" / "cat").rename(pets / "val" / "cats")
    assert facts_of(folder(pets))["sha256"] != before


def test_what_was_read_is_not_read_again(pets, monkeypatch):
    first = facts_of(folder(pets))
    monkeypatch.setattr(own_images, "read", None)
    assert facts_of(folder(pets)) == first
    train, test = load(first["sha256"], None)
    assert (len(train.labels), len(test.labels)) == (8, 4)


def test_images_that_changed_meanwhile(pets):
    sha256 = facts_of(folder(pets))["sha256"]
    own_images._arrays(sha256).unlink()
    assert len(load(sha256, folder(pets))[0].labels) == 8
    own_images._arrays(sha256).unlink()
    with pytest.raises(BadInput, match="are not here: run the suite that names their folder"):
        load(sha256, None)
    (pets / "val" / "dog" / "1.png").unlink()
    with pytest.raises(BadInput, match="the images have changed since the suite was read"):
        load(sha256, folder(pets))


def test_a_share_held_out(pets, tmp_path):
    root = shutil.copytree(pets / "train", tmp_path / "all")
    found = read(folder(root, test_split=0.25))
    assert found.test.labels.tolist() == [0, 1]
    assert found.train.labels.tolist() == [0] * 3 + [1] * 3
    for name in ("cat", "dog"):  # other names in the same order
        for file in sorted((root / name).iterdir()):
            file.rename(file.with_name(f"x{file.name}"))
    assert read(folder(root, test_split=0.25)).facts == found.facts


def test_a_table_of_files(pets, tmp_path):
    rows = ["path,class,set"]
    for part in ("train", "val"):
        files = sorted((pets / part).glob("*/*.png"))
        rows += [f"{file.relative_to(tmp_path)},{file.parent.name},{part}" for file in files]
    (tmp_path / "pets.csv").write_text("\n".join(rows))
    table = ImageSource("csv", str(tmp_path / "pets.csv"), 12)
    assert read(table).facts == read(folder(pets)).facts


@pytest.mark.filterwarnings("ignore")  # of the package itself
def test_a_folder_that_datasets_has_saved(pets, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    halves = {}
    for part in ("train", "val"):
        files = sorted((pets / part).glob("*/*.png"))
        rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files]}
        rows["label"] = [file.parent.name for file in files]
        halves[part.replace("val", "validation")] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "saved")
    assert read(ImageSource("huggingface", str(tmp_path / "saved"), 12)).facts == read(folder(pets)).facts
    with pytest.raises(BadInput, match="is no folder that datasets has saved"):
        read(ImageSource("huggingface", str(pets), 12))


class Saved:
    """As much of a split of the package datasets as is read: columns of lists, by name."""

    def __init__(self, columns, kinds):
        self.columns, self.features = columns, {name: SimpleNamespace() for name in columns}
        for name, kind in kinds.items():
            self.features[name] = type(kind, (), {"names": ["cat", "dog"]})()

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: each[key] for name, each in self.columns.items()}

    def select_columns(self, names):
        return Saved({name: self.columns[name] for name in names}, {})

    def cast_column(self, name, feature):
        assert list(self.columns) == [name]
        assert feature == {"decode": False}
        return self


KINDS = {"id": "Value", "photo": "Image", "thumbnail": "Image", "animal": "ClassLabel", "size": "ClassLabel"}


@pytest.fixture
def saved(pets, tmp_path, monkeypatch):
    """saved(part, kinds): a split that the package datasets has saved; what ``save`` is told, the package gives."""

    def split(part, kinds=KINDS):
        files = sorted((pets / part).glob("*/*.png"))
        labels = [("cat", "dog").index(file.parent.name) for file in files]
        photos = [{"bytes": file.read_bytes(), "path": None} for file in files[:-1]]
        photos.append({"bytes": None, "path": str(files[-1])})
        columns = {"id": list(labels), "photo": photos, "thumbnail": photos[:1] * len(files), "animal": labels}
        return Saved(columns | {"size": [0] * len(files)}, kinds)

    def save(content):
        package = SimpleNamespace(Image=lambda **options: options, load_from_disk=lambda root: content)
        monkeypatch.setitem(sys.modules, "datasets", package)
        return ImageSource("huggingface", str(tmp_path / "saved"), 12)

    (tmp_path / "saved").mkdir()
    return SimpleNamespace(split=split, save=save)


def test_a_saved_folder_has_its_first_images_and_labels(saved, pets):
    """Of several columns of a type the first counts; a picture is there with its bytes, or by its path."""
    source = saved.save({"train": saved.split("train"), "validation": saved.split("val"), "extra": saved.split("val")})
    assert read(source).facts == read(folder(pets)).facts
    alone = replace(saved.save(saved.split("train")), test_split=0.25)
    assert read(alone).train.labels.tolist() == [0] * 3 + [1] * 3


def test_what_a_saved_folder_lacks(saved, monkeypatch):
    with pytest.raises(BadInput, match=r"has no test split: say test_split: 0\.2"):
        facts_of(saved.save({"train": saved.split("train")}))
    with pytest.raises(BadInput, match="has the splits one, two, and none is called train"):
        facts_of(saved.save({"one": saved.split("train"), "two": saved.split("val")}))
    for lost in ("Image", "ClassLabel"):
        kinds = {name: kind for name, kind in KINDS.items() if kind != lost}
        with pytest.raises(BadInput, match="train has no column of type Image and one of type ClassLabel"):
            facts_of(saved.save({"train": saved.split("train", kinds)}))
    source = saved.save({})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"needs the package: pip install 'kdbench\[huggingface\]'"):
        facts_of(source)


TABLE = "file,label,split\npets/train/cat/0.png,cat,train\npets/train/dog/0.png,dog,train\npets/val/cat/0.png,cat,val\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("file,", "files,", r"pets\.csv:1  has no column 'file'\. Its columns: files, label, split"),
        (",label", ",labels", "has no column 'label'"),
        (",val", ",vall", r"pets\.csv:4  split is 'vall': write train or test"),
        ("train/dog/0", "train/dog/9", r"pets\.csv:3  .*9\.png: no such file"),
        ("split", "part", r"has no column 'split': say test_split: 0\.2"),
        (",val", ",train", "holds no test image"),
    ],
)
def test_a_table_is_refused_by_its_line(pets, tmp_path, old, new, message):
    table = tmp_path / "pets.csv"
    table.write_text(TABLE.replace(old, new))
    with pytest.raises(BadInput, match=message):
        facts_of(ImageSource("csv", str(table), 12))


def test_classes_that_are_numbers_have_their_order(pets, tmp_path):
    names = dict(zip(("10", "9", "x"), sorted((pets / "train" / "cat").iterdir()), strict=False))
    rows = {name: f"{file},{name},train\n{file},{name},test\n" for name, file in names.items()}
    for number, (classes, order) in enumerate(((("10", "9"), ["9", "10"]), (("10", "9", "x"), ["10", "9", "x"]))):
        table = tmp_path / f"{number}.csv"
        table.write_text("file,label,split\n" + "".join(rows[name] for name in classes))
        assert facts_of(ImageSource("csv", str(table), 12))["class_names"] == order


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_a_numpy_file(tmp_path, channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 10, 10, *channels), dtype=np.uint8)
    labels = np.arange(9)[:, None] % 3
    np.savez(
        tmp_path / "a.npz",
        train_images=images[:6],
        train_labels=labels[:6],
        test_images=images[6:],
        test_labels=labels[6:],
    )
    found = read(ImageSource("npz", str(tmp_path / "a.npz")))
    assert found.train.images.shape == (6, 3, 10, 10)
    expected = images[0] if channels == () else images[0][..., 0]
    assert np.array_equal(found.train.images[0][0], expected)
    assert found.facts["class_names"] == ["0", "1", "2"]
    np.savez(tmp_path / "b.npz", x=images, y=labels[:, 0])
    halves = read(ImageSource("npz", str(tmp_path / "b.npz"), test_split=0.34))
    assert (len(halves.train.labels), sorted(halves.test.labels)) == (6, [0, 1, 2])
    assert read(ImageSource("npz", str(tmp_path / "a.npz"), 8)).train.images.shape == (6, 3, 8, 8)


def test_every_kind_of_picture():
    def seen(image, size):
        return square(upright(image), size)

    assert seen(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), 4).getpixel((0, 0)) == (255, 255, 255)
    assert seen(Image.new("LA", (4, 4), (0, 128)), 4).getpixel((0, 0)) == (127, 127, 127)
    assert seen(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), 4).getpixel((0, 0)) == (0, 0, 0)
    assert seen(Image.new("I;16", (4, 4), 25700), 4).getpixel((0, 0)) == (100, 100, 100)
    palette = Image.new("RGB", (4, 4), (1, 2, 3)).quantize()
    assert seen(palette, 4).getpixel((0, 0)) == (1, 2, 3)
    wide = Image.new("L", (30, 10))
    wide.paste(200, (10, 0, 20, 10))
    assert np.asarray(seen(wide, 10)).min() == 200
    turned = Image.new("L", (10, 10))
    turned.paste(200, (0, 0, 10, 5))
    turned.getexif()[0x0112] = 3
    assert np.asarray(seen(turned, 10))[0, 0, 0] == 0


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(own_pictures, "LARGEST", 20)
    for width, height in ((5, 4), (7, 3)):
        Image.new("RGB", (width, height)).save(tmp_path / f"{width}.png")
    assert own_pictures.read_picture("folder", tmp_path / "5.png").size == (5, 4)
    with pytest.raises(BadInput, match=r"7\.png: cannot be read any more: .*7 × 3 pixels are too many"):
        own_pictures.read_picture("folder", tmp_path / "7.png")


def broken(pets):
    (pets / "train" / "cat" / "0.png").write_bytes(b"no picture")


def one_class(pets):
    shutil.rmtree(pets / "train" / "dog")
    shutil.rmtree(pets / "val" / "dog")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda pets: None, {"size": None}, "say the side of the images in pixels, such as size: 32"),
        (lambda pets: None, {"test_split": 0.2}, "has test images of its own: leave test_split out"),
        (lambda pets: shutil.rmtree(pets / "val"), {}, "has train/ and no test/ or val/ beside it"),
        (lambda pets: shutil.rmtree(pets), {}, "no such folder"),
        (lambda pets: (pets / "val" / "dog").rename(pets / "val" / "dogs"), {}, "the classes dogs are not in .* 'dog'"),
        (lambda pets: (pets / "train" / "Cat").mkdir(), {}, "two classes are called Cat, but for upper and lower case"),
        (lambda pets: (pets / "train" / "bird").mkdir(), {}, "no training image of the classes bird"),
        (lambda pets: shutil.rmtree(pets / "val" / "cat") or shutil.rmtree(pets / "val" / "dog"), {}, "no test image"),
        (one_class, {}, "has cat for classes, and two are the least"),
        (broken, {}, r"1 files cannot be read: .*cat/0\.png: .*skip_unreadable: true"),
    ],
)  # fmt: skip
def test_what_is_refused(pets, change, options, message):
    change(pets)
    with pytest.raises(BadInput, match=message):
        facts_of(folder(pets, **options))


def test_unreadable_files_left_out(pets):
    broken(pets)
    found = read(folder(pets, skip_unreadable=True))
    assert found.train.labels.tolist() == [0] * 3 + [1] * 4
    assert len(found.skipped) == 1


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_images_that_stay_files(pets, tmp_path, kind):
    """They have the facts of those in memory; a share held out holds the same files."""
    root = shutil.copytree(pets / "train", tmp_path / "all")
    rows = sorted(f"all/{file.parent.name}/{file.name},{file.parent.name}" for file in root.glob("*/*.png"))
    (tmp_path / "all.csv").write_text("\n".join(["file,label", *rows]))
    source = ImageSource(kind, str(root if kind == "folder" else tmp_path / "all.csv"), 12, 0.25)
    whole, streamed = read(source), read(replace(source, stream=True))
    assert streamed.facts == {**whole.facts, "streamed": True}
    for half in ("train", "test"):
        files, pixels = getattr(streamed, half), getattr(whole, half)
        assert files.labels.tolist() == pixels.labels.tolist()
        for name, image in zip(files.names, pixels.images, strict=True):
            assert np.array_equal(np.asarray(Image.open(files.folder / os.fsdecode(name)))[0, 0], image[0, 0, 0])
    assert np.array_equal(contact_sheet(streamed), contact_sheet(whole))
    sha256 = whole.facts["sha256"]
    own_images._arrays(sha256).unlink()
    assert len(load(sha256, replace(source, stream=True))[0].images) == 6


def test_files_beyond_the_memory_are_streamed(pets, monkeypatch):
    monkeypatch.setattr(own_images, "MOST_BYTES", 12 * 12 * 12 * 3 - 1)
    assert facts_of(folder(pets))["streamed"]
    with pytest.raises(BadInput, match=r"do not fit into .*: leave stream: false out"):
        facts_of(folder(pets, stream=False))
    np.savez(pets / "a.npz", images=np.zeros((12, 12, 12), np.uint8), labels=np.arange(12) % 2)
    with pytest.raises(BadInput, match=r"do not fit into .*: save them as files, which are streamed"):
        facts_of(ImageSource("npz", str(pets / "a.npz"), test_split=0.5))


def test_streamed_files_are_listed_once(pets, monkeypatch):
    source = folder(pets, stream=True)
    sha256 = facts_of(source)["sha256"]
    before = list_streamed(sha256, source)[0]
    with monkeypatch.context() as patch:
        patch.setattr(own_images, "read", None)
        again = list_streamed(sha256, source)[0]
    assert (again.folder, again.names.tolist()) == (before.folder, before.names.tolist())
    with pytest.raises(BadInput, match="are not here: run the suite that names their folder"):
        list_streamed(sha256, None)
    picture(pets / "val" / "dog" / "1.png", 3)
    with pytest.raises(BadInput, match="the images have changed since the suite was read"):
        list_streamed(sha256, source)


def test_progress_is_told(pets, monkeypatch, caplog):
    monkeypatch.setattr(own_images, "CHUNK", 5)
    with caplog.at_level("INFO"):
        read(folder(pets))
    assert caplog.messages == ["5 of 12 images are read", "10 of 12 images are read"]


def test_a_contact_sheet(pets):
    sheet = np.asarray(contact_sheet(read(folder(pets))))
    assert sheet.shape == (128, 384, 3)
    assert sheet[10, 32::64, 0].tolist() == [0, 40, 10, 50, 20, 60]  # by turns
    assert sheet[74, 32::64, 0].tolist() == [30, 70, 255, 255, 255, 255]


def test_an_unwritable_cache(pets, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "file"))
    assert facts_of(folder(pets))["classes"] == 2
