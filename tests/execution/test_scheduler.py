"""The scheduler alone: slots that come and go, jobs for several devices, very many jobs. No process, no real time."""

from dataclasses import dataclass, field

import pytest

from kdbench.errors import CannotSave
from kdbench.execution import jobs as jobs_module
from kdbench.execution.devices import Slot
from kdbench.execution.jobs import Job
from kdbench.execution.scheduler import MAX_CRASHES, Outcome, Scheduler, SlotHealth, StoredRecords
from kdbench.planning.plan import Cohort, Plan
from kdbench.planning.speed import ASSUMED, Speed
from kdbench.store.lock import Lock
from kdbench.store.record import Record
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec
from kdbench.suite.specs import DatasetSpec, Recipe, RunSpec, Supervised, WeightedTerm


DIGITS = DatasetSpec(name="digits", train_per_class=4)
RECIPE = Recipe(epochs=2, batch=16, lr=0.1)
TEACHER = Supervised(network="resnet20", dataset=DIGITS, recipe=RECIPE)


def student(trial=0, weight=1.0, teacher=None):
    terms = (WeightedTerm(name="kd" if teacher else "ce", weight=weight),)
    return RunSpec(student="resnet8", teacher=teacher, terms=terms, dataset=DIGITS, recipe=RECIPE, trial=trial)


def cohort(size, **values):
    return Cohort(tuple(student(weight=1.0 + n, **values) for n in range(size)))


def gpu(host, number, job=0):
    return Slot(f"{host}:gpu:{number}.{job}", "gpu", {"CUDA_VISIBLE_DEVICES": str(number)}, host=host)


@dataclass
class Table:
    """Records without files, slots without workers, and a clock that stands still."""

    slots: list
    there: set = field(default_factory=set)
    failures: dict = field(default_factory=dict)
    heard: list = field(default_factory=list)
    now: float = 0.0
    taken: dict = field(default_factory=dict)
    stored: dict = field(default_factory=dict)

    def __post_init__(self):
        self.scheduler = Scheduler(self.slots, self, lambda slot, event: self.heard.append(event), lambda: self.now)

    def has(self, stage):
        return stage.id in self.there

    def done(self, job, id):
        return id in self.there

    def is_taken(self, job, id):
        return id in self.taken

    def holder(self, job, id):
        return self.taken.get(id, "")

    def fail(self, job, id, failure):
        self.failures[id], self.stored[id] = failure.reason, failure

    def start(self):
        """The slots that got a job, and the runs or the teacher of each."""
        return {each.slot.name: each for each in self.scheduler.assign()}

    def finish(self, slot):
        job = self.scheduler.running[slot]
        self.there.update(job.ids)
        for id in job.ids:
            self.scheduler.handle(slot, {"event": "finished", "id": id})
        self.scheduler.handle(slot, {"event": "done", "busy": []})

    def said(self):
        """What the user has heard since this was last asked."""
        texts = [event["text"] for event in self.heard if event["event"] == "message"]
        self.heard.clear()
        return texts


def sizes(started):
    return sorted(len(each.job.runs) for each in started.values())


def test_cohorts_that_have_not_started_are_split_again_where_slots_come_and_go():
    table = Table([gpu("a", 0)])
    whole = Plan((), (cohort(8), cohort(8, trial=1)), 0, 0)
    table.scheduler.add(whole)
    assert sizes(table.start()) == [8]
    for number in (1, 2, 3, 4):
        table.scheduler.add_slot(gpu("a", number))
    assert sizes(table.start()) == [2, 2, 2, 2]
    table = Table([gpu("a", 0), gpu("a", 1), gpu("b", 0), gpu("b", 1)])
    table.scheduler.add(Plan((TEACHER,), (cohort(8, teacher=TEACHER),), 0, 0))
    (first,) = table.start()
    for slot in ("b:gpu:0.0", "b:gpu:1.0", "a:gpu:1.0"):
        table.scheduler.remove_slot(slot, "its node is lost")
    table.finish(first)
    (again,) = table.start().values()
    assert len(again.job.runs) == 8
    assert {run.id for run in again.job.runs} == {run.id for run in cohort(8, teacher=TEACHER).runs}


def test_a_slot_that_is_lost_gives_its_job_back_and_the_last_one_ends_the_work():
    table = Table([gpu("a", 0), gpu("b", 0)])
    table.scheduler.add(Plan((), (cohort(1), cohort(1, trial=1)), 0, 0))
    started = table.start()
    table.scheduler.remove_slot("b:gpu:0.0", "its node is lost")
    assert table.start() == {}
    table.finish("a:gpu:0.0")
    assert table.start()["a:gpu:0.0"].job is started["b:gpu:0.0"].job
    table.scheduler.remove_slot("a:gpu:0.0", "its node is lost")
    assert not table.scheduler
    assert "b:gpu:0.0 cannot be used: its node is lost" in str(table.scheduler.outcome.fatal)


def on_several(devices, monkeypatch):
    """Cohorts of the first trial want so many devices."""

    def job_of(cohort, discard_weights=frozenset()):
        return Job(runs=cohort.runs, devices=1 if cohort.runs[0].trial else devices)

    monkeypatch.setattr(jobs_module, "cohort_job", job_of)


def test_a_job_for_several_devices_waits_for_them_on_one_host_and_is_not_overtaken_there(monkeypatch):
    on_several(2, monkeypatch)
    table = Table([gpu("a", 0), gpu("b", 0), gpu("b", 1)])
    small = [Cohort((student(trial=n),)) for n in (1, 2, 3, 4)]
    table.scheduler.add(Plan((), tuple(small[:3]), 0, 0))
    assert len(table.start()) == 3
    table.scheduler.backlog.add_first([jobs_module.cohort_job(cohort(1)), jobs_module.cohort_job(small[3])])
    table.finish("b:gpu:1.0")
    assert table.start() == {}
    table.finish("a:gpu:0.0")
    assert list(table.start()) == ["a:gpu:0.0"]
    table.finish("b:gpu:0.0")
    (large,) = table.start().values()
    assert (large.slot.name, [slot.name for slot in large.others]) == ("b:gpu:0.0", ["b:gpu:1.0"])
    assert large.message()["replicas"] == [{"environment": {"CUDA_VISIBLE_DEVICES": "1"}, "threads": 0}]
    table.finish("b:gpu:0.0")
    assert table.scheduler.free == {"b:gpu:0.0", "b:gpu:1.0"}


@pytest.mark.parametrize(("wanted", "given"), [(2, 2), (8, 3)])
def test_a_job_gets_as_many_devices_as_the_largest_host_has(monkeypatch, wanted, given):
    on_several(wanted, monkeypatch)
    shares = [
        gpu(host, number, job) for host, count in (("a", 1), ("b", 3)) for number in range(count) for job in (0, 1)
    ]
    table = Table(shares)
    table.scheduler.add(Plan((), (cohort(1),), 0, 0))
    (large,) = table.start().values()
    devices = [slot.device for slot in (large.slot, *large.others)]
    assert devices == ["0", "1", "2"][:given]
    assert {slot.host for slot in (large.slot, *large.others)} == {"b"}


def test_the_time_for_a_job_does_not_grow_with_the_jobs_and_slots(processor_time_below):
    """On 256 slots of which some are lost: about a third of a millisecond each, and a limit ten times as high."""
    runs = [student(trial=n, teacher=TEACHER) for n in range(2_000)]
    plan = Plan((TEACHER,), tuple(Cohort((run,)) for run in runs), 0, 0)
    plan.split_for(1)  # what is counted once is not timed
    table = Table([gpu(f"n{n // 8}", n % 8) for n in range(256)])
    with processor_time_below(6.5):
        table.scheduler.add(plan)
        count = 0
        while table.scheduler:
            count += len(table.start())
            table.finish(next(iter(table.scheduler.running)))
            if count % 500 == 0:
                table.scheduler.remove_slot(next(reversed(table.scheduler.slots)), "its node is lost")
        assert count >= 2_001


ARITHMETIC = Speed("gpu", (1e-9, 0.0, 0.0, 0.0, 0.0))
"""Of a device on which everything is divided."""


def widths(jobs, per_run, slots=4, most=4, speed=ARITHMETIC):
    return [job.devices for job in jobs_module.spread(jobs, per_run, slots, most, speed)]


def test_one_run_gets_the_devices_that_would_wait_for_it():
    alone, small = (Job(runs=cohort(1).runs) for _ in range(2))
    long = Job(runs=(student().model_copy(update={"recipe": RECIPE.model_copy(update={"epochs": 200})}),))
    assert widths([alone], per_run=0) == [4]
    assert widths([alone], per_run=0, most=3) == [2]  # a batch of 16 is not divided by three
    assert widths([alone], per_run=0, speed=Speed("gpu", (0.0, 0.0, 1.0, 0.0, 0.0))) == [1]  # each launches all layers
    assert widths([alone, small], per_run=0) == [2, 2]
    assert widths([long, *(Job(runs=cohort(1, trial=n).runs) for n in range(4))], per_run=0) == [4, 1, 1, 1, 1]
    assert widths([Job(runs=cohort(4).runs)], per_run=0) == [4]
    assert widths([Job(runs=cohort(4).runs)], per_run=0, speed=ASSUMED["gpu"]) == [1]  # it can be split instead
    assert widths([Job(runs=cohort(4).runs), Job(teacher=TEACHER)], per_run=2) == [2, 2]


@pytest.mark.parametrize(("wanted", "texts"), [(0, []), (2, []), (3, ["not all runs get 3 devices, some 2"])])
def test_fewer_devices_than_asked_for_are_announced(wanted, texts):
    table = Table([gpu("a", number) for number in range(4)])
    table.scheduler.devices_per_run = wanted
    table.scheduler.add(Plan((), (cohort(1),), 0, 0))
    assert [event["text"].partition(": ")[0] for event in table.heard] == texts


@pytest.mark.parametrize("wanted", [0, 2])
def test_a_teacher_that_is_gone_is_made_again_on_several_devices(wanted):
    """The plan has its cohort alone: the teacher was there when it was made."""
    table = Table([gpu("a", number) for number in range(2)])
    table.scheduler.devices_per_run = wanted
    table.scheduler.add(Plan((), (cohort(1, teacher=TEACHER),), 0, 0))
    (again,) = table.start().values()
    assert (again.job.teacher, len(again.others)) == (TEACHER, 1)


def test_cohorts_are_split_for_the_groups_of_devices_that_there_are():
    slots = [gpu("a", number) for number in range(4)]
    table = Table(slots)
    table.scheduler.devices_per_run = 2
    table.scheduler.add(Plan((), (cohort(8),), 0, 0))
    started = table.start()
    assert sizes(started) == [4, 4]
    assert [len(each.others) for each in started.values()] == [1, 1]


ONE, RUN = "a:gpu:0.0", student()


@pytest.fixture
def table():
    """One slot that has one run, whose worker is ready."""
    table = Table([gpu("a", 0)], now=100.0)
    table.scheduler.add(Plan((), (cohort(1),), 0, 0))
    table.start()
    table.scheduler.handle(ONE, {"event": "ready"})
    table.said()
    return table


def test_what_another_process_is_at_is_tried_again_each_second_and_after_five_the_user_hears_who_that_is(table):
    run, said = RUN.id, {}
    table.taken[run] = "process 7"
    for second in range(8):
        table.now = 100.0 + second
        assert list(table.start()) == ([ONE] if second else [])
        table.taken[run] = "process 8" if second == 7 else "process 7"
        table.scheduler.handle(ONE, {"event": "done", "busy": [run]})
        said[second] = table.said()
        table.now += 0.99
        assert table.start() == {}
        assert table.scheduler
    words = "waiting for what other processes are at: {}, held by process {}"
    assert {second: texts for second, texts in said.items() if texts} == {
        5: [words.format(run, 7)], 7: [words.format(run, 8)],
    }  # fmt: skip
    table.now = 108.0
    (again,) = table.start().values()
    assert again.message()["waited"]
    assert [event["waited"] for event in table.heard if event["event"] == "started"] == [True]


def test_a_job_whose_worker_dies_three_times_is_given_up(table):
    for crash in range(1, MAX_CRASHES):
        table.scheduler.lose(ONE, "it died")
        assert table.said() == ["it died; starting it again from the last checkpoint"]
        assert list(table.start()) == [ONE]
        table.scheduler.handle(ONE, {"event": "ready"})
        assert table.scheduler.running[ONE].crashes == crash
    table.scheduler.lose(ONE, "it died")
    assert table.said() == []
    assert (table.failures, table.scheduler.outcome.failed) == ({RUN.id: "it died"}, {RUN.id: "it died"})
    assert table.scheduler.health == {ONE: SlotHealth(ready=False, faults=1)}
    assert not table.scheduler
    assert MAX_CRASHES == 3


@pytest.mark.parametrize(
    ("asked", "texts"), [(True, []), (False, ["it died; what it has trained since its last checkpoint is lost"])]
)
def test_when_the_work_is_to_stop_nothing_is_started_again(table, asked, texts):
    table.scheduler.outcome.interrupted = True
    assert table.scheduler
    table.scheduler.lose(ONE, "it died", asked=asked)
    assert (table.said(), table.scheduler.running, bool(table.scheduler)) == (texts, {}, False)
    table.scheduler.lose(ONE, "it died")
    assert table.said() == []


def test_a_worker_that_was_told_to_stop_and_has_is_no_crash(table):
    table.scheduler.lose(ONE, "it died", asked=True)
    assert (table.said(), table.failures) == ([], {})


def test_three_workers_that_end_before_they_are_ready_cost_the_slot(table):
    table.scheduler.add_slot(gpu("b", 0))
    table.scheduler.add_slot(gpu("a", 0))
    for fault in (1, 2):
        table.scheduler.lose(ONE, "it died")
        assert table.said() == ["it died before it was ready; starting it again"]
        assert table.scheduler.health[ONE].faults == fault
        assert list(table.start()) == [ONE]
    table.scheduler.lose(ONE, "it died")
    assert table.said() == [
        "it died before it was ready; starting it again",
        f"{ONE} cannot be used any longer: it died, 3 times in a row. The work goes on without it",
    ]
    assert list(table.start()) == ["b:gpu:0.0"]


@pytest.mark.parametrize(
    ("event", "faults"),
    [
        ({"event": "epoch", "epoch": 1}, 0),
        ({"event": "resumed", "epoch": 0, "batches": 1}, 0),
        ({"event": "epoch", "epoch": 0}, 2),
        ({"event": "done", "busy": []}, 0),
    ],
)
def test_a_slot_on_which_a_job_gets_further_is_not_at_fault(table, event, faults):
    table.scheduler.running[ONE].record_progress(RUN.id, 0)
    table.scheduler.health[ONE].faults = 2
    table.scheduler.handle(ONE, {"id": RUN.id, **event})
    assert table.scheduler.health[ONE].faults == faults


@pytest.mark.parametrize(
    ("before", "after", "split"),
    [(5, 5, False), (10, 11, False), (5, 6, True), (4, 5, True), (7, 6, False), (6, 5, True), (5, 4, True)],
)
def test_cohorts_are_split_anew_where_a_fifth_more_slots_are_there_or_fewer(before, after, split):
    table = Table([gpu("a", number) for number in range(before)])
    table.scheduler.add(Plan((), (), 0, 0))
    for number in range(before, after):
        table.scheduler.add_slot(gpu("a", number))
    for number in range(after, before):
        table.scheduler.remove_slot(f"a:gpu:{number}.0", "lost")
    table.start()
    assert table.scheduler.split_for == (after if split else before)


@pytest.mark.parametrize(
    ("event", "failed", "again"),
    [
        ({"error": "no data"}, {RUN.id: "no data"}, False),
        ({"lost_lease": "another has it"}, {}, True),
        ({"lost_teacher": "it is damaged"}, {}, True),
        ({"busy": []}, {}, False),
    ],
)
def test_what_becomes_of_a_job_that_is_not_done(table, event, failed, again):
    table.scheduler.handle(ONE, {"event": "done", **event})
    assert (table.failures, bool(table.scheduler)) == (failed, again)
    assert table.said() == [text for key, text in event.items() if key.startswith("lost")]
    table.now += 0.99
    assert table.start() == {}
    table.now += 0.01
    assert bool(table.start()) == again


def test_an_error_fails_what_nobody_has_finished_or_is_at(table):
    runs = cohort(3, trial=7).runs
    table.scheduler.handle(ONE, {"event": "done", "busy": []})
    table.scheduler.add(Plan((), (Cohort(runs),), 0, 0))
    table.start()
    table.there.add(runs[0].id)
    table.taken[runs[1].id] = "process 7"
    table.scheduler.handle(ONE, {"event": "done", "error": "no data"})
    assert table.failures == {runs[2].id: "no data"}
    table.now += 1
    assert [each.job.ids for each in table.start().values()] == [[runs[1].id]]


def test_where_nothing_can_be_saved_the_work_ends(table):
    table.scheduler.handle(ONE, {"event": "done", "error": "no space", "fatal": True})
    fatal = table.scheduler.outcome.fatal
    assert isinstance(fatal, CannotSave)
    assert str(fatal) == "no space\nNothing can be saved there, so the work stops here"
    assert not table.scheduler


def test_what_was_given_up_and_is_finished_after_all_has_not_failed(table):
    table.scheduler.handle(ONE, {"event": "failed", "id": RUN.id, "reason": "x"})
    assert table.scheduler.outcome.failed == {RUN.id: "x"}
    table.scheduler.handle(ONE, {"event": "finished", "id": RUN.id})
    assert table.scheduler.outcome.failed == {}


def test_a_measurement_of_what_failed_has_failed_and_says_so(table):
    table.finish(ONE)
    probe = ProbeSpec(source=TEACHER, dataset=DIGITS, recipe=RECIPE)
    table.scheduler.outcome.failed[TEACHER.id] = "the loss is nan"
    table.scheduler.add(Plan((), (), 0, 0, measurements=(probe,)))
    assert table.start() == {}
    assert table.failures == {probe.id: "its network failed: the loss is nan"}


def test_a_slot_that_is_held_gets_nothing_until_it_is_placed_or_lost(table):
    for way in ("placed", "lost"):
        table.scheduler.hold(ONE, "by another")
        assert table.said() == [f"{ONE} is waited for: by another. Its job goes to the next slot that is free"]
        assert (table.start(), bool(table.scheduler)) == ({}, True)
        table.scheduler.handle(ONE, {"event": "placed"}) if way == "placed" else table.scheduler.lose(ONE, "it died")
        assert list(table.start()) == [ONE]
        table.said()


def test_slots_are_taken_in_the_order_in_which_they_first_came():
    table = Table([gpu("a", number) for number in range(3)])
    table.scheduler.remove_slot("a:gpu:0.0", "lost")
    table.scheduler.add_slot(gpu("a", 9))
    table.scheduler.add_slot(gpu("a", 0))
    table.scheduler.add(Plan((), tuple(cohort(1, trial=n) for n in range(2)), 0, 0))
    assert list(table.start()) == ["a:gpu:0.0", "a:gpu:1.0"]


def test_the_work_stops_when_it_is_interrupted_or_cannot_go_on():
    assert [Outcome().stopping, Outcome(interrupted=True).stopping, Outcome(fatal=CannotSave("x")).stopping] == [
        False,
        True,
        True,
    ]
    table = Table([gpu("a", 0)])
    table.scheduler.add(Plan((), (cohort(1),), 0, 0))
    assert table.scheduler
    table.scheduler.outcome.interrupted = True
    assert not table.scheduler


@pytest.mark.parametrize("kind", ["runs", "teachers", "measurements"])
def test_of_a_results_folder_the_record_of_a_jobs_kind_is_asked(tmp_path, kind):
    probe = ProbeSpec(source=TEACHER, dataset=DIGITS, recipe=RECIPE)
    jobs = {"runs": Job(runs=(RUN,)), "teachers": Job(teacher=TEACHER), "measurements": Job(measurement=probe)}
    job, store = jobs[kind], Store(tmp_path)
    (id,), records = job.ids, StoredRecords(store)
    assert (records.done(job, id), records.is_taken(job, id)) == (False, False)
    records.fail(job, id, Failure(kind="error", epoch=0, reason="x"))
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("failure.json")] == [
        f"{kind}/{id}/failure.json"
    ]
    with Lock(tmp_path / "locks" / f"{kind}-{id}.lock"):
        assert records.is_taken(job, id)
        assert records.holder(job, id).startswith("process ")
    record = Record(tmp_path / kind / id)
    accuracy = Accuracy(epoch=2, top1=50.0, top5=90.0)
    record.finish(Result(id=id, kind=kind[:-1], last=accuracy, best=accuracy, weights_sha256=""), {})
    assert records.done(job, id)
    assert records.has(TEACHER) == (kind == "teachers")


def test_a_cohort_whose_worker_dies_three_times_is_halved_at_each_further_time():
    table, text = Table([gpu("a", 0)]), "it died, 3 times: continuing with half of the students at a time"
    table.scheduler.add(Plan((), (cohort(4),), 0, 0))
    crashed, said = [], []
    while started := table.start():
        crashed += sizes(started)
        table.scheduler.handle(ONE, {"event": "ready"})
        if len(crashed) == 5:
            table.finish(ONE)
        else:
            table.scheduler.lose(ONE, "it died")
        said += table.said()
    assert crashed == [4, 4, 4, 2, 1, 1, 2, 1, 1]
    again = "it died; starting it again from the last checkpoint"
    assert said == [again, again, text, text, text]
    runs = cohort(4).runs
    assert {id: failure.reason for id, failure in table.stored.items()} == {run.id: "it died" for run in runs[1:]}
    assert {(failure.kind, failure.epoch, failure.detail) for failure in table.stored.values()} == {("error", 0, "")}
