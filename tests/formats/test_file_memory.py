"""What saving and loading take: little more than the model, and an error where that is too much."""

import functools
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import fastrnn
from fastrnn.formats import safetensors

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status")
SIZE = 1500  # units: files of 72 and 36 MB
MORE = 16e6  # bytes

PROGRAM = """
import gc, resource, sys
import numpy as np
import fastrnn
from fastrnn.formats import load, save
from fastrnn.training import checkpoint
import fastrnn.models, fastrnn.optim

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

def limit(extra):
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + int(extra), -1))

path, SIZE, args = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
fastrnn.save(fastrnn.GRU(2, 3), path + ".small")  # what is imported at first use
fastrnn.load(path + ".small")
"""


def run(code, path, *args, size=SIZE):
    done = subprocess.run([sys.executable, "-c", PROGRAM + code, str(path), str(size),
                           *map(str, args)], text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.split("\n")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "m"
    fastrnn.LSTM(SIZE, SIZE, seed=0).save(path)
    return path


# ---- loading -------------------------------------------------------------------------------------


def tensors(H, dtype="f4"):
    """Return an LSTM's parameters with PyTorch's names."""
    rng = np.random.default_rng(0)
    shapes = {"weight_ih_l0": (4 * H, H), "weight_hh_l0": (4 * H, H), "bias_ih_l0": (4 * H,),
              "bias_hh_l0": (4 * H,)}
    return {name: rng.random(shape, "f4").astype(dtype) for name, shape in shapes.items()}


def write_own(path, H):
    fastrnn.LSTM(H, H, seed=0).save(path)


def write_tensors(path, H, dtype):
    safetensors.write(path, tensors(H, dtype), None)


def write_bfloat16(path, H):
    """Write halves of float32; NumPy has no such dtype, so the header is changed afterwards."""
    safetensors.write(path, {name: (a.view("u4") >> 16).astype("u2")
                             for name, a in tensors(H).items()}, None)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end].replace(b'"U16"', b'"BF16"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def write_torch(path, H, dtype, **options):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(a).to(getattr(torch, dtype))
                for name, a in tensors(H).items()}, path, **options)


def write_weights(path, H, dtype="f4"):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as root:
        for number, array in enumerate(tensors(H, dtype).values()):
            if number < 3:  # Keras has one bias
                root[f"layers/lstm/cell/vars/{number}"] = array.T


def write_keras(path, H, compression):
    write_weights(f"{path}.h5", H)
    config = {"class_name": "Sequential", "config": {"layers": [
        {"class_name": "LSTM", "config": {"name": "lstm", "units": H}}]}}
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(f"{path}.h5", "model.weights.h5")


def write_json(path, H):
    fastrnn.save(fastrnn.LSTM(H, H, seed=0), path)


OLD = {"_use_new_zipfile_serialization": False}
KINDS = {  # what writes a file, its suffix, units for 100 MB, what load needs, and the highest peak
    "fastrnn": (write_own, "", 1800, "", 1),
    "safetensors": (functools.partial(write_tensors, dtype="f4"), "", 1800, "", 1),
    "float64": (functools.partial(write_tensors, dtype="f8"), "", 1300, "", 1),
    "float16": (functools.partial(write_tensors, dtype="f2"), "", 2600, "", 2),
    "bfloat16": (write_bfloat16, "", 2600, "", 2),
    "torch": (functools.partial(write_torch, dtype="float32"), ".pt", 1800, "", 1),
    "torch float16": (functools.partial(write_torch, dtype="float16"), ".pt", 2600, "", 2),
    "torch bfloat16": (functools.partial(write_torch, dtype="bfloat16"), ".pt", 2600, "", 2),
    # read by torch as a whole; each tensor becomes a parameter before the next
    "old torch": (functools.partial(write_torch, dtype="float32", **OLD), ".pt", 1800, "", 2),
    "weights.h5": (write_weights, ".weights.h5", 1800, ", layers=[('LSTM', {})]", 1),
    "keras": (functools.partial(write_keras, compression=zipfile.ZIP_STORED), ".keras", 1800,
              "", 1),
    "keras packed": (functools.partial(write_keras, compression=zipfile.ZIP_DEFLATED), ".keras",
                     1900, "", 1.2),
    "rtneural": (write_json, ".json", 700, "", 2),  # 83 MB: it has a limit of 100
}


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_loading_takes_little_more_than_the_model(tmp_path, kind):
    """The peak is the model itself, which is twice a file of 16-bit floats; never above 2 files."""
    write, suffix, H, options, times = KINDS[kind]
    path = tmp_path / f"m{suffix}"
    write(tmp_path / f"small{suffix}", 3)
    write(path, H)
    size = path.stat().st_size
    assert size > 80e6
    peak, traced = map(int, run(f"""
import tracemalloc
load(args[0]{options})  # what is imported at first use
reset_peak()
before = status("VmHWM")
tracemalloc.start()
model = load(path{options})
print(status("VmHWM") - before)
# gradients are reserved, and take no memory before a backward
own = getattr(model, "layers", None) or [model]
print(tracemalloc.get_traced_memory()[1] - sum(layer.flat_grads.nbytes for layer in own), end="")
""", path, tmp_path / f"small{suffix}"))
    assert peak <= times * size + MORE
    assert peak >= size * (0.15 if suffix == ".json" else 0.9)  # it was measured
    assert traced <= times * size + MORE
    path.unlink()


# ---- saving --------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("suffix", ["", ".pt", ".json"])
def test_saving_takes_at_most_16_mb(tmp_path, suffix):
    if suffix == ".pt":
        pytest.importorskip("torch")
    peak, = map(int, run("""
model = fastrnn.LSTM(SIZE, SIZE, seed=0)
save(fastrnn.LSTM(2, 3), path + ".again" + args[0])
reset_peak()
before = status("VmHWM")
save(model, path + args[0])
print(status("VmHWM") - before, end="")
""", tmp_path / "m", suffix, size=400 if suffix == ".json" else 1800))
    assert peak <= MORE
    model = fastrnn.load(f"{tmp_path}/m{suffix}")
    other = fastrnn.LSTM(model.input_size, model.hidden_size, seed=0)
    np.testing.assert_array_equal(model.weight_hh_l0, other.weight_hh_l0)


@linux
def test_a_checkpoint_is_written_from_the_optimizer_itself(tmp_path):
    peak, = map(int, run("""
from fastrnn.training import History
model = fastrnn.LSTM(SIZE, SIZE, seed=0)
optimizer = fastrnn.optim.Adam(model)
reset_peak()
before = status("VmHWM")
checkpoint.save(path, model, optimizer, 1e-3, None, History(), {})
print(status("VmHWM") - before, end="")
""", tmp_path / "m"))
    assert peak <= MORE
    assert (tmp_path / "m").stat().st_size > 200e6


@linux
def test_lack_of_memory_is_named(tmp_path):
    """An array that has to be copied to be written, with nothing left."""
    out = run("""
from fastrnn.formats import safetensors
rows = np.ones((2, 10**7), ">f4")
limit(2e6)
try:
    safetensors.write(path, {"a": rows}, {})
except MemoryError as error:
    print(error, end="")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
""", tmp_path / "m")
    assert out == [f"there is not enough memory to write {str(tmp_path / 'm')!r}, a file of "
                   "80,000,128 bytes"]
    assert not (tmp_path / "m").exists()


@linux
def test_arrays_that_are_not_contiguous_are_written_piece_by_piece(tmp_path):
    peak, = map(int, run("""
from fastrnn.formats import safetensors
arrays = {"t": np.ones((5000, 4000), "f4").T, "s": np.ones((4000, 5000), "f8")[:, ::2]}
reset_peak()
before = status("VmHWM")
safetensors.write(path, arrays, {})
print(status("VmHWM") - before, end="")
""", tmp_path / "m"))
    assert peak <= MORE


@linux
def test_saving_takes_no_memory_to_speak_of(path, tmp_path):
    peak, = map(int, run("""
model = fastrnn.LSTM(SIZE, SIZE)
reset_peak()
before = status("VmHWM")
save(model, path)
print(status("VmHWM") - before, end="")
""", tmp_path / "m"))
    assert peak <= 0.02 * path.stat().st_size
    # with a few megabytes left a process saves all the same
    assert run("""
model = fastrnn.LSTM(SIZE, SIZE, seed=0)
gc.collect()
limit(3e6)
save(model, path)
print("saved", end="")
""", tmp_path / "m") == ["saved"]
    assert (tmp_path / "m").read_bytes() == path.read_bytes()


@linux
@pytest.mark.parametrize("times", [0.1, 0.6, 1.2, 2.2, 2.8])
def test_too_little_memory_to_load_is_an_error_or_enough(path, times):
    out = run("""
import os
limit(float(args[0]) * os.path.getsize(path))
try:
    load(path)
    print("loaded", end="")
except MemoryError as error:
    print(error, end="")
""", path, times)
    # twice the gradients' buffer, which takes no memory before it is used, but is counted here
    assert out == [f"there is not enough memory to load {str(path)!r}, a file of "
                   f"{path.stat().st_size:,} bytes"] or (
        times > 2 and out == ["loaded"]), out


@linux
@pytest.mark.parametrize("times", [0.5, 1.5, 3.5])
def test_too_little_memory_for_a_checkpoint_changes_nothing(path, tmp_path, times):
    """Saving may need copies of the optimiser's arrays; that must be an error, never a crash."""
    out = run("""
import os
from fastrnn.training import History
model = fastrnn.LSTM(SIZE // 2, SIZE // 2, seed=0)
optimizer = fastrnn.optim.Adam(model)
checkpoint.save(path, model, optimizer, 1e-3, None, History(), {})
before = open(path, "rb").read(), model.flat.tobytes()
limit(float(args[0]) * model.flat.nbytes)
for call in (lambda: checkpoint.save(path, model, optimizer, 1e-3, None, History(), {"b": 1}),
             lambda: checkpoint.load(path, model, optimizer)):
    try:
        call()
        print("done")
    except MemoryError:
        print("refused")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert model.flat.tobytes() == before[1]
assert fastrnn.load(path).flat.tobytes() == before[1]
print(sorted(os.listdir(os.path.dirname(path))), end="")
""", tmp_path / "m", times)
    assert set(out[:2]) <= {"done", "refused"}
    assert out[2] == "['m', 'm.small']"
