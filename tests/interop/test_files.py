import os
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.interop.files import cast, read_weights, write_pytorch, write_safetensors
from tests.interop.models import RESNET, drawn_weights
from tests.pytorch import torch

WRITERS = {"safetensors": write_safetensors, "pytorch": write_pytorch}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_written_is_read(tmp_path, writer, dtype):
    weights = cast(drawn_weights(RESNET), dtype)
    writer(tmp_path / "weights", weights)  # told apart by content, not by name
    back = read_weights(tmp_path / "weights")
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array.astype(back[name].dtype))
        assert back[name].shape == array.shape
        assert back[name].dtype == (np.int64 if array.dtype == np.int64 else np.float32)


def test_safetensors_are_what_pytorch_reads(tmp_path):
    from safetensors.torch import load_file

    weights = cast(drawn_weights(RESNET), "bfloat16")
    write_safetensors(tmp_path / "a.safetensors", weights)
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(tensor.float().numpy(), weights[name].astype(np.float32))


def test_wrappers_of_a_model_leave_no_trace(tmp_path):
    inner = {"a": np.ones(2, np.float32), "b.c": np.zeros((), np.float32)}
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        wrapped = {prefix + name: array for name, array in inner.items()}
        write_pytorch(tmp_path / "a.pt", wrapped, epoch=3)
        assert read_weights(tmp_path / "a.pt").keys() == inner.keys()


def test_other_entries_of_a_checkpoint_are_passed_over(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "name": "official",
        "state_dict": {"module.a": parameter},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    assert list(read_weights(tmp_path / "epoch_3.pt")) == ["a"]


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_pickle_is_refused_and_not_executed(tmp_path, old_format):
    trace = tmp_path / "was_here"
    content = {"state_dict": {"a": torch.ones(2)}, "evil": Code(trace)}
    path = tmp_path / "evil.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(UserError, match="was not opened, and nothing in it was executed"):
        read_weights(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the file would have done it
    assert trace.exists()


def test_a_bare_pickle_is_refused_and_not_executed(tmp_path):
    trace = tmp_path / "was_here"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": Code(trace)}))
    with pytest.raises(UserError, match="was not opened"):
        read_weights(tmp_path / "evil.pt")
    assert not trace.exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UserError, match=r"besides tensors it holds Python objects.*state_dict"):
        read_weights(tmp_path / "module.pt")


def test_torchscript_is_refused_with_what_to_do(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "RN50.pt"))
    with pytest.raises(UserError, match=r"(?s)TorchScript program.*torch\.jit\.load"):
        read_weights(tmp_path / "RN50.pt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_file_cut_short_is_refused(tmp_path, name):
    writer = write_pytorch if name.endswith(".pt") else write_safetensors
    writer(tmp_path / name, drawn_weights(RESNET))
    whole = (tmp_path / name).read_bytes()
    for length in (len(whole) - 100, len(whole) // 2, 30, 3, 0):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=name):
            read_weights(tmp_path / name)


def test_what_holds_no_weights_is_named(tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="epoch, lr are not tensors"):
        read_weights(tmp_path / "a.pt")
    torch.save([torch.ones(2)], tmp_path / "b.pt")
    with pytest.raises(UserError, match="holds a list, not a dict of weights"):
        read_weights(tmp_path / "b.pt")
    with pytest.raises(UserError, match="cannot read"):
        read_weights(tmp_path / "c.pt")


def test_numbers_too_large_for_a_dtype_are_named():
    weights = {"visual.bn1.running_var": np.array([1e5], np.float32)}
    assert cast(weights, "bfloat16")["visual.bn1.running_var"].dtype == ml_dtypes.bfloat16
    with pytest.raises(
        UserError, match=r"visual\.bn1\.running_var has numbers too large for float16"
    ):
        cast(weights, "float16")
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        cast(weights, "int8")


def test_safetensors_do_without_torch(tmp_path, monkeypatch):
    write_pytorch(tmp_path / "a.pt", {"a": np.ones(2, np.float32)})
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    write_safetensors(tmp_path / "a.safetensors", {"a": np.ones(2, np.float32)})
    assert list(read_weights(tmp_path / "a.safetensors")) == ["a"]
    for touch in (read_weights, lambda path: write_pytorch(path, {})):
        with pytest.raises(UserError, match=r"pip install 'cyclip_jax\[torch\]'"):
            touch(tmp_path / "a.pt")


def test_importing_the_package_imports_no_torch():
    modules = ["interop", "interop.formats", "interop.pretrained", "export", "evaluate", "train"]
    code = (
        f"import sys, {', '.join(f'cyclip_jax.{module}' for module in modules)}\n"
        "names = ('torch', 'transformers', 'safetensors', 'open_clip', 'onnx', 'onnxruntime')\n"
        "print([name for name in names if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout == "[]\n", output.stderr


def test_a_type_that_is_no_float_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="weights of the types U8"):
        read_weights(tmp_path / "a.safetensors")
