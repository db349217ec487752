"""Which calls run accelerated: modes, reports and the log."""

import logging
import threading

import pytest
import twins

torch = pytest.importorskip("torch")
bridge = twins.bridge

from fastrnn.torch import choice  # noqa: E402

FIELDS = ("name", "cell", "shape", "accelerated", "fallback", "reason", "times")


def model():
    torch.manual_seed(0)
    return bridge.accelerate(torch.nn.ModuleDict({
        "one": torch.nn.GRU(3, 5), "two": torch.nn.LSTM(3, 5), "cell": torch.nn.LSTMCell(3, 5),
        "head": torch.nn.Linear(5, 2)}))


def test_rows_of_a_model():
    made = model()
    for _ in range(3):
        made["one"](torch.randn(4, 2, 3))
    made["one"](torch.randn(6, 2, 3))
    made["cell"](torch.randn(2, 3))
    rows = bridge.report(made).rows
    for row in rows:
        assert all(hasattr(row, field) for field in FIELDS), row
    counted = {name: sum(row.accelerated for row in rows if row.name == name)
               for name in ("one", "two", "cell")}
    assert counted == {"one": 4, "two": 0, "cell": 1}
    assert not sum(row.fallback for row in rows)
    assert {str(row.cell) for row in rows if row.name == "one"} == {"GRU"}


def test_reasons():
    made = model()
    with bridge.mode("never"):
        made["one"](torch.randn(4, 2, 3))
    made["two"].half()(torch.randn(4, 2, 3).half())
    made["cell"](torch.randn(2, 3))
    rows = {row.name: row for row in bridge.report(made).rows if row.accelerated + row.fallback}
    assert [rows[name].fallback for name in ("one", "two", "cell")] == [1, 1, 0]
    assert "never" in rows["one"].reason
    assert "float16" in rows["two"].reason or "half" in rows["two"].reason.lower()
    assert not rows["cell"].reason


def test_text_is_a_table():
    made = model()
    made["one"](torch.randn(4, 2, 3))
    made["two"].bfloat16()(torch.randn(4, 2, 3).bfloat16())
    text = str(bridge.report(made))
    lines = text.splitlines()
    assert len(lines) >= 3
    one = next(line for line in lines if "one" in line)
    assert "GRU" in one
    assert "bfloat16" in next(line for line in lines if "two" in line)


def test_reports_before_any_call_and_of_other_models():
    assert str(bridge.report(model()))
    assert str(bridge.report())
    assert not sum(row.accelerated for row in bridge.report(torch.nn.Linear(2, 3)).rows)


def test_a_report_is_of_its_model_only():
    first, second = model(), model()
    first["one"](torch.randn(4, 2, 3))
    assert twins.counts(first)[0] == 1
    assert twins.counts(second) == (0, 0)
    del first
    for _ in range(20):  # the next model may lie where a former one lay
        other = model()
        assert twins.counts(other) == (0, 0)
        other["one"](torch.randn(4, 2, 3))
        del other


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_module_whose_weights_are_all_computed_has_a_row_without_calls():
    made = model()
    for name in list(dict(made["one"].named_parameters())):
        torch.nn.utils.parametrize.register_parametrization(made["one"], name, Doubled())
    made["one"](torch.randn(4, 2, 3))
    made["cell"](torch.randn(2, 3))
    one, cell = bridge.report(made).rows
    assert (cell.name, cell.accelerated, cell.fallback) == ("cell", 1, 0)
    assert (one.name, one.cell, one.accelerated, one.fallback) == ("one", "GRU", 0, 0)
    assert one.reason.startswith("weight_ih_l0 is computed anew for each call")


def test_calls_whose_weights_are_made_anew_are_counted_and_cost_no_other_counts(few):
    made = model()
    torch.nn.utils.parametrizations.weight_norm(made["two"], "weight_ih_l0")
    for _ in range(20):
        made["one"](torch.randn(4, 2, 3))
        made["two"](torch.randn(4, 2, 3))
    one, two = bridge.report(made).rows
    assert (one.name, one.accelerated) == ("one", 20)
    assert (two.name, two.cell, two.accelerated) == ("two", "LSTM", 0)
    counted = {"GRU": 0, "LSTM": 0}
    for row in bridge.report().rows:
        counted[row.cell] += row.accelerated + row.fallback
    assert counted == {"GRU": 20, "LSTM": 20}
    assert len(choice.counts) <= 3


@pytest.fixture
def few(monkeypatch):
    """Let three problems, and three counts of calls, be remembered."""
    monkeypatch.setattr(choice, "_MOST", 3)
    monkeypatch.setattr(choice, "choices", {})
    monkeypatch.setattr(choice, "counts", {})
    monkeypatch.setattr(choice, "gone", {})


def test_a_program_of_many_sizes_begins_to_count_anew(few):
    made, theirs = model(), bridge.restore(model())
    for B in range(1, 6):
        x = torch.randn(4, B, 3)
        torch.testing.assert_close(made["one"](x), theirs["one"](x))
    rows = bridge.report(made).rows
    assert [row.shape.split()[:4] for row in rows] == [["T", "4", "B", "4"], ["T", "4", "B", "5"]]


def test_a_program_that_makes_its_weights_anew_begins_to_count_anew(few):
    modules = [bridge.GRU(3, 5) for _ in range(5)]
    for module in modules:
        module(torch.randn(4, 2, 3))
    assert len(choice.choices) == 1
    counted = [sum(row.accelerated for row in bridge.report(module).rows) for module in modules]
    assert counted == [0, 0, 1, 1, 1]
    assert sum(row.accelerated for row in bridge.report().rows) == 5


def test_a_report_of_the_process_counts_patched_calls():
    before = twins.counts()
    module = torch.nn.RNN(3, 5)
    bridge.patch()
    module(torch.randn(4, 2, 3))
    with bridge.mode("never"):
        module(torch.randn(4, 2, 3))
    after = twins.counts()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)


@pytest.mark.parametrize("bad", [None, "", "fast", 1, True, ["auto"]])
def test_bad_modes_are_refused(bad):
    for call in (bridge.set_mode, lambda name: bridge.mode(name).__enter__()):
        with pytest.raises((ValueError, TypeError), match="mode"):
            call(bad)
    assert bridge.get_mode() == "always"


def test_modes_are_set_and_come_back():
    for name in ("auto", "never", "always"):
        bridge.set_mode(name)
        assert bridge.get_mode() == name
    with bridge.mode("never"):
        with bridge.mode("auto"):
            assert bridge.get_mode() == "auto"
        assert bridge.get_mode() == "never"
        with pytest.raises(KeyError), bridge.mode("auto"):
            raise KeyError
        assert bridge.get_mode() == "never"
    assert bridge.get_mode() == "always"


def test_a_mode_counts_in_other_threads():
    _, ours = twins.twins("gru", 3, 5)
    with bridge.mode("never"):
        thread = threading.Thread(target=ours, args=(twins.normal(4, 2, 3),))
        thread.start()
        thread.join()
    assert twins.counts(ours) == (0, 1)


@twins.per_cell
def test_mode_never_is_torchs_own_bits(cell):
    theirs, ours = twins.twins(cell, 3, 5, dtype=torch.float32)
    x = torch.randn(4, 2, 3)
    with bridge.mode("never"):
        for got, expected in zip(twins.flat(ours(x)), twins.flat(theirs(x)), strict=True):
            assert torch.equal(got, expected)
    twins.assert_fell_back(ours)


@twins.per_cell
def test_mode_always_gives_the_same_bits_again(cell):
    _, ours = twins.twins(cell, 7, 33, 2, dtype=torch.float32)
    x = twins.normal(9, 6, 7, dtype=torch.float32)
    runs = [twins.results(ours, x) for _ in range(3)]
    twins.cases.assert_same_bytes(runs[1], runs[0])
    twins.cases.assert_same_bytes(runs[2], runs[0])
    with torch.no_grad():
        assert (ours(x)[0].numpy() == runs[0]["y"]).all()


@pytest.mark.parametrize("single", [False, True], ids=["layer", "cell"])
@twins.per_cell
def test_mode_auto_measures_and_computes_the_same(cell, single):
    theirs, ours = twins.twins(cell, 3, 6, dtype=torch.float32, single=single)
    lead = (3,) if single else (5, 3)
    x, hx = twins.normal(*lead, 3, dtype=torch.float32), twins.state_of(theirs, 3)
    with bridge.mode("auto"):
        for _ in range(3):
            twins.assert_same(twins.results(ours, x, hx), twins.results(theirs, x, hx), theirs,
                              5, 3)
    rows = bridge.report(ours).rows
    assert sum(row.accelerated + row.fallback for row in rows) == 3
    assert all(row.reason for row in rows if row.fallback)
    assert any(row.times for row in rows)


def test_measuring_leaves_no_trace():
    """Timing a call must not move random numbers, gradients, hooks or version counters."""
    _, ours = twins.twins("lstm", 3, 11, 2, dropout=0.5)
    x, hx = twins.normal(4, 2, 3), twins.state_of(ours, 2)
    leaves = [x, *hx, *ours.parameters()]
    versions, seen = [leaf._version for leaf in leaves], []
    for leaf in leaves:
        leaf.register_hook(seen.append)
    torch.manual_seed(3)
    expected = torch.rand(5)
    for training in (True, False):
        ours.train(training)
        torch.manual_seed(3)
        with bridge.mode("auto"):
            ours(x, hx) if not training else None
        assert torch.equal(torch.rand(5), expected)
    assert [leaf._version for leaf in leaves] == versions
    assert not any(leaf.grad is not None for leaf in leaves)
    assert not seen


def test_measured_dropout_draws_once():
    """In training a call moves the generator as far at its first sight as later."""
    _, ours = twins.twins("gru", 3, 13, 2, dropout=0.5)
    drawn = []
    with bridge.mode("auto"):
        for _ in range(2):
            torch.manual_seed(3)
            ours(twins.normal(4, 2, 3))
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])


def test_the_log_has_a_line_a_call(caplog):
    made = model()
    with caplog.at_level(logging.INFO, logger="fastrnn.torch"):
        made["one"](torch.randn(4, 2, 3))
        made["two"].half()(torch.randn(4, 2, 3).half())
        with bridge.mode("never"):
            made["cell"](torch.randn(2, 3))
    lines = [record.getMessage() for record in caplog.records if record.name == "fastrnn.torch"]
    assert len(lines) == 3
    for line, cell in zip(lines, ("GRU", "LSTM", "LSTMCell"), strict=True):
        assert cell in line


def test_the_log_is_silent_by_default(caplog):
    with caplog.at_level(logging.WARNING, logger="fastrnn.torch"):
        model()["one"](torch.randn(4, 2, 3))
    assert not [record for record in caplog.records if record.name == "fastrnn.torch"]


@pytest.mark.parametrize("make", [
    lambda: (torch.randn(40, 300, 64), {}),
    lambda: (torch.randn(300, 40, 64), {"batch_first": True, "bidirectional": True}),
    lambda: (torch.nn.utils.rnn.pack_padded_sequence(
        torch.randn(40, 300, 64), torch.arange(300) % 40 + 1, enforce_sorted=False), {}),
], ids=["time first", "batch first", "packed"])
def test_a_long_call_is_timed_by_its_first_steps(make, monkeypatch):
    """What was measured counts for the whole call; its values are those of the whole call."""
    x, options = make()
    module = bridge.GRU(64, 128, **options)
    timed = []
    own = bridge.operators._ways

    def ways(call):
        ours, theirs, share = own(call)
        timed.append((share, ours()[0][0].shape, theirs()[0].shape))
        return ours, theirs, share

    monkeypatch.setattr(bridge.operators, "_ways", ways)
    with bridge.mode("always"), torch.no_grad():
        expected = module(x)[0]
    bridge.choice.choices.clear()
    bridge.choice.counts.clear()
    with bridge.mode("auto"), torch.no_grad():
        got = module(x)[0]
    data = [y if isinstance(y, torch.Tensor) else y.data for y in (got, expected)]
    torch.testing.assert_close(*data, rtol=1e-4, atol=1e-5)
    ((share, ours, theirs),) = timed
    assert share == 8 / 40
    assert ours == theirs != data[0].shape
    (row,) = bridge.report(module).rows
    assert all(0 < seconds < 10 for seconds in row.times)


@pytest.mark.parametrize(("first", "second", "accelerated"), [
    ((3.0, 1.0), (0.5, 1.2), True),  # the computer did something else at the first moment
    ((3.0, 1.0), (2.0, 1.2), False),  # PyTorch's way is faster indeed
    ((0.5, 1.0), None, True),  # is not timed again
])
def test_where_pytorch_was_faster_both_are_timed_again(first, second, accelerated, monkeypatch):
    found = iter([first, second])
    monkeypatch.setattr(choice, "_timed", lambda ours, theirs: next(found))
    module, x = bridge.GRU(3, 5), torch.randn(4, 2, 3)
    choice.choices.clear()
    choice.counts.clear()
    with bridge.mode("auto"), torch.no_grad():
        for _ in range(3 * choice._AGAIN):
            module(x)
    rows = bridge.report(module).rows
    (last,) = {row.times for row in rows}
    assert last == ((min(first[0], second[0]), min(first[1], second[1])) if second else first)
    slower = 0 if second is None else 3 * choice._AGAIN if not accelerated else choice._AGAIN
    assert sum(row.fallback for row in rows) == slower
    assert sum(row.accelerated for row in rows) == 3 * choice._AGAIN - slower


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_report_has_packed_calls_that_pytorch_computed(kind):
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    module = getattr(bridge, kind)(4, 6)
    with bridge.mode("never"):
        module(packed)
    (row,) = bridge.report(module).rows
    assert (row.fallback, row.reason) == (1, "mode never")


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_weights_of_inference_mode_are_pytorchs_error_in_training(mode):
    with torch.inference_mode():
        module = bridge.GRU(4, 6)
    with bridge.mode(mode), pytest.raises(RuntimeError, match="cannot be saved for backward"):
        module(torch.randn(5, 3, 4))


def test_a_checkpoint_goes_the_same_way_when_it_computes_again(monkeypatch):
    """Timed once more between the two, it would save other tensors: an error of PyTorch."""
    found = iter([(3.0, 1.0), (0.5, 1.2)])
    monkeypatch.setattr(choice, "_timed", lambda ours, theirs: next(found))
    module = bridge.GRU(3, 5)
    choice.choices.clear()
    choice.counts.clear()
    with bridge.mode("auto"):
        for _ in range(2 * choice._AGAIN):
            x = torch.randn(4, 2, 3)
            for power in (1, 2):
                torch.utils.checkpoint.checkpoint(
                    lambda x, power: (module(x)[0] ** power).sum(), x, power,
                    use_reentrant=False).backward()
    assert not sum(row.accelerated for row in bridge.report(module).rows)


@twins.per_layer
def test_sizes_between_two_powers_of_two_are_one_problem(cell, options, monkeypatch):
    """A program whose batches all differ would else time both ways at each of them."""
    monkeypatch.setattr(choice, "choices", {})
    monkeypatch.setattr(choice, "_timed", lambda ours, theirs: (1.0, 1.0))
    _, ours = twins.twins(cell, 3, 5, **options)
    with bridge.mode("auto"):
        for T, B in [(8, 32), (15, 63), (9, 40), (8, 64), (7, 63)]:
            ours(torch.randn(T, B, 3, dtype=torch.float64))
    assert [known.shape.split()[:4] for known in choice.choices.values()] == [
        ["T", "8", "B", "32"], ["T", "8", "B", "64"], ["T", "7", "B", "63"]]


@pytest.mark.parametrize(("ours", "theirs", "clear"), [
    ([1.0], [2.0], False),  # one round says nothing
    ([1.0, 1.1], [1.5, 1.4], True),
    ([1.5, 1.4], [1.1, 1.0], True),
    ([1.0, 1.3], [1.5, 1.4], False),
    ([1.0, 1.0], [1.2, 1.2], False),
])
def test_timing_ends_when_one_way_was_always_faster(ours, theirs, clear):
    assert choice._is_clear(ours, theirs) == clear


@pytest.mark.parametrize(("slow", "calls"), [(0.01, 3), (0.0, 6)])
def test_each_way_is_timed_until_it_is_clear(slow, calls, monkeypatch):
    """Once to prepare, then two rounds, or five."""
    now, made = [0.0], []
    monkeypatch.setattr(choice.time, "perf_counter", lambda: now[0])

    def way(seconds):
        made.append(seconds)
        now[0] += seconds

    times = choice._timed(lambda: way(0.001), lambda: way(0.001 + slow))
    assert times == pytest.approx((0.001, 0.001 + slow))
    assert len(made) == 2 * calls
