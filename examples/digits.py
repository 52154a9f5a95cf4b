"""Train two students on handwritten digits, read their accuracies, plot them, and classify images with the better one.

Run it as a script (`python examples/digits.py`, under a minute on a CPU) or cell by cell in an editor. It needs the extra
`plots`. An argument names the folder of its results and its picture; default: `digits-example`.
"""

# %% [markdown]
# # Knowledge distillation on digits
# The suite `digits.yaml` trains a resnet8 on 20 labels per class: alone (`ce`) and with a resnet14 as its teacher (`kd`).

# %%
import sys
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits

import kdbench


matplotlib.use("Agg")  # a picture is written, no window is opened
from matplotlib import pyplot


folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("digits-example")
suite = kdbench.load_suite(Path(__file__).with_name("digits.yaml"))
print(kdbench.plan(suite, folder).runs, "runs to train")

# %% [markdown]
# ## Train
# Two runs and their teacher, in worker processes. What is finished is not trained again; kill it at any time.


# %%
def show(slot: str, event: dict) -> None:
    """Print the id of whatever is finished."""
    if event["event"] == "finished":
        print(event["id"], "finished")


failed = kdbench.run(suite, folder, devices="cpu", jobs_per_device=1, progress=show)
assert not failed, failed

# %% [markdown]
# ## Look at the numbers
# One row per value: the students' and the teacher's accuracies in percent.

# %%
df = kdbench.results(folder, suite)
top1 = df[df["metric"] == "top1"]
print(top1[["method", "teacher", "student", "trial", "value", "run_id"]])
print(kdbench.report(folder, suite, format="markdown", view="measured"))

# %%
figure, axes = pyplot.subplots(figsize=(4, 3), layout="constrained")
axes.bar(top1["method"], top1["value"])
axes.set_ylabel("top-1 accuracy in %")
axes.set_title("digits, 20 labels per class")
figure.savefig(folder / "accuracy.png", dpi=120)

# %% [markdown]
# ## Use a student
# It takes images as they are: 8×8 pixels become 32×32, and are normalised as in its test.

# %%
students = top1[top1["method"] != "teacher"]
best = students.loc[students["value"].idxmax()]
student = kdbench.load_student(best["run_id"], folder)
digits = load_digits()
images = torch.from_numpy(digits.images[:10] / 16).float().unsqueeze(1).expand(-1, 3, -1, -1)
classes = student(images).logits.argmax(1)
print(best["method"], "says", *(student.class_names[index] for index in classes))
print("the labels are", *digits.target[:10])
