"""Reads and writes weight files: safetensors, and PyTorch's own. Only the latter need PyTorch."""

import importlib
import io
import logging
import os
import re
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from cyclip_jax.errors import UserError, check_known
from cyclip_jax.files import absolute, expanded, how_written, write_atomically

if TYPE_CHECKING:
    import torch

DTYPES: dict[str, DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}

_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}

_TORCH_DTYPES = [np.dtype(dtype).name for dtype in _SAFETENSORS_DTYPES.values()]

# DistributedDataParallel and torch.compile put these prefixes before the name of every weight.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
# FSDP, activation checkpointing and torch.compile put these between the parts of a name.
_INNER_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Every CLIP has this weight, whose name under OpenAI, open_clip or transformers shows the prefix.
_TOKENS = re.compile(r"(.*?)(text\.|text_model\.embeddings\.)?token_embedding\.weight")
# Where trainers keep the weights in a checkpoint, the first first.
_NESTED = ("state_dict", "model_state_dict", "model", "module")


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the weights of a safetensors or PyTorch file; the content tells which of them it is.

    A PyTorch file holds a state dict, or a dict with one under a key of `_NESTED`. Nothing in it is
    executed: PyTorch's restricted unpickler knows only tensors and plain containers.

    Args:
      path: a local or remote path.

    Returns:
      {name: numpy array} without the prefix of a wrapper. Weights that are float16 or bfloat16 in
      the file are float32 here.

    Raises:
      UserError: the file is of another kind, is damaged or has code in it, or PyTorch is missing.
    """
    path = expanded(path)
    try:
        content = absolute(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}{how_written(path)}: {error}") from error
    if content.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file; run git lfs pull there")
    # A safetensors file starts with eight bytes of length and a JSON object.
    if content[8:9] == b"{":
        weights = _read_safetensors(content, path)
    else:
        weights = _read_pytorch(content, path)
    # float32 holds every number of the two half types exactly.
    halves = (np.float16, ml_dtypes.bfloat16)
    widened = {
        name: array.astype(np.float32) if array.dtype in halves else array
        for name, array in weights.items()
    }
    return unwrapped(widened, path)


def unwrapped(
    weights: Mapping[str, np.ndarray], source: str | os.PathLike[str]
) -> dict[str, np.ndarray]:
    """Removes the prefix of a wrapper, e.g. "module." or "student.", from the names of weights.

    A prefix that is not of PyTorch itself is said, and so is how many weights lie outside it.

    Raises:
      UserError: two of the names would become one, or several models lie in one file.
    """
    result = {
        _WRAPPERS.sub("", _INNER_WRAPPERS.sub("", name)): array for name, array in weights.items()
    }
    if len(result) < len(weights):
        raise UserError(
            f"{source} has the same weight with and without the prefix of a wrapper, such as "
            "'module.'; keep one of the two"
        )
    prefixes = sorted({match[1] for match in map(_TOKENS.fullmatch, result) if match})
    if not prefixes or "" in prefixes:
        return result
    if len(prefixes) > 1:
        raise UserError(
            f"{source} holds several models, with the prefixes {', '.join(prefixes)}; choose one, "
            f"here the first:\n{_cure_of_prefix(source, prefixes[0])}"
        )
    (prefix,) = prefixes
    inner = {k.removeprefix(prefix): v for k, v in result.items() if k.startswith(prefix)}
    logging.warning(
        "The weights of %s have the prefix %s, which is left out, and so are %d others without it.",
        source,
        prefix,
        len(result) - len(inner),
    )
    return inner


def _cure_of_prefix(path, prefix):
    """Lines of Python that write the weights of one prefix into a file of their own."""
    given, written = _given_and_written(path)
    if str(path).endswith(".safetensors"):
        return (
            "from safetensors.numpy import load_file, save_file\n"
            f"weights, prefix = load_file({given}), {prefix!r}\n"
            "save_file({k.removeprefix(prefix): v for k, v in weights.items() "
            f"if k.startswith(prefix)}}, {written})"
        )
    return (
        "import torch\n"
        f"held, prefix = torch.load({given}, map_location='cpu', weights_only=True), {prefix!r}\n"
        f"held = next((held[k] for k in {_NESTED} if isinstance(held.get(k), dict)), held)\n"
        "torch.save({k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}, "
        f"{written})"
    )


def _given_and_written(path):
    """A file and the one that a cure writes beside it, as Python has them: never the same."""
    stem, ending = os.path.splitext(str(path))
    return repr(str(path)), repr(f"{stem}-weights{ending if ending == '.safetensors' else '.pt'}")


def write_safetensors(path: str | os.PathLike[str], weights: Mapping[str, np.ndarray]) -> None:
    """Writes {name: numpy array} as a safetensors file, whole or not at all."""
    from safetensors.numpy import save  # not above, because training does not need it

    contiguous = {name: np.array(array, order="C") for name, array in weights.items()}
    # Programs that read the file into PyTorch ask for this mark.
    write_atomically(path, save(contiguous, metadata={"format": "pt"}))


def write_pytorch(
    path: str | os.PathLike[str], weights: Mapping[str, np.ndarray], **entries: Any
) -> None:
    """Writes a state dict with torch.save.

    Args:
      path: the file.
      weights: {name: numpy array}.
      entries: if there are any, the file holds {"state_dict": weights, **entries}.

    Raises:
      UserError: PyTorch is not installed.
    """
    torch = require_torch(path)
    state_dict = {name: to_tensor(torch, array) for name, array in weights.items()}
    buffer = io.BytesIO()
    torch.save({**entries, "state_dict": state_dict} if entries else state_dict, buffer)
    write_atomically(path, buffer.getvalue())


def to_tensor(torch: ModuleType, array: np.ndarray) -> "torch.Tensor":
    """Returns a tensor that owns its memory; it has the array's dtype, even if that is bfloat16."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def cast(weights: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Casts weights to "float32", "float16" or "bfloat16"; whole numbers stay as they are.

    Raises:
      UserError: the dtype is unknown, or a number is too large for it.
    """
    check_known("dtype", dtype, DTYPES)

    def cast_one(name, array):
        if array.dtype.kind == "i":
            return array
        with np.errstate(over="ignore"):
            result = array.astype(DTYPES[dtype])
        if not np.isfinite(result.astype(np.float32)).all():
            raise UserError(f"{name} has numbers too large for {dtype}; choose another dtype")
        return result

    return {name: cast_one(name, array) for name, array in weights.items()}


def require_torch(path: str | os.PathLike[str]) -> ModuleType:
    """Returns the module torch, or raises a UserError that says how to install it."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch file and PyTorch is not installed; run pip install "
            "'cyclip_jax[torch]', or use a safetensors file, which does not need it"
        ) from error


def _read_safetensors(content, path):
    import safetensors  # not safetensors.numpy.load, which knows no bfloat16

    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is a damaged safetensors file ({error}); copy or download it again"
        ) from error
    unknown = sorted({tensor["dtype"] for _, tensor in tensors} - _SAFETENSORS_DTYPES.keys())
    if unknown:
        raise UserError(
            f"{path} has weights of the types {', '.join(unknown)}; save them as one of "
            f"{', '.join(_SAFETENSORS_DTYPES)}"
        )
    return {
        name: np.frombuffer(tensor["data"], _SAFETENSORS_DTYPES[tensor["dtype"]]).reshape(
            tensor["shape"]
        )
        for name, tensor in tensors
    }


def _read_pytorch(content, path):
    torch = require_torch(path)
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types for a file that it cannot read
        raise UserError(_why_not_opened(path, str(error))) from error
    keys = []
    while isinstance(loaded, dict):
        key = next((key for key in _NESTED if isinstance(loaded.get(key), dict)), None)
        if key is None:
            break
        keys.append(key)
        loaded = loaded[key]
    if keys:
        logging.warning("The weights of %s are those under the key %s.", path, " and ".join(keys))
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path} holds a {type(loaded).__name__}, not a dict of weights; save "
            "model.state_dict()"
        )
    other = [
        str(name)
        for name, value in loaded.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if other:
        raise UserError(
            f"{path} does not hold weights by name, because {', '.join(other[:5])} are not "
            "tensors; save model.state_dict() alone, or under 'state_dict'"
        )
    return {name: from_tensor(tensor, name) for name, tensor in loaded.items()}


def from_tensor(tensor: "torch.Tensor", name: str) -> np.ndarray:
    """Returns a PyTorch tensor as a numpy array; bfloat16, which numpy lacks, becomes float32.

    Raises:
      UserError: the tensor is sparse or quantised, or its numbers are neither floats nor integers.
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _TORCH_DTYPES or "strided" not in str(tensor.layout) or tensor.is_meta:
        raise UserError(
            f"the weight {name} is not a dense tensor of floats but {kind} in the layout "
            f"{tensor.layout}; save it as a dense float32 tensor"
        )
    tensor = tensor.detach().cpu()
    return (tensor.float() if kind == "bfloat16" else tensor).numpy()


def _why_not_opened(path, message):
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)  # PyTorch colours its messages
    first_line = message.split("\n")[0][:300]
    given, written = _given_and_written(path)
    if "TorchScript" in message:
        return (
            f"{path} is a TorchScript program, as OpenAI's CLIP files are; save only its weights:\n"
            "import torch\n"
            f"weights = torch.jit.load({given}, map_location='cpu').state_dict()\n"
            f"torch.save(weights, {written})"
        )
    if "Weights only load failed" in message or "Unsupported" in message:
        found = re.search(r"GLOBAL (\S+)", message)
        objects = f"Python objects ({found[1][:100]})" if found else "Python objects"
        return (
            f"{path} was not opened, and nothing in it was executed, because besides tensors it "
            f"holds {objects}, which could run code; if you trust it, save only its weights, for "
            "example as model.state_dict():\n"
            "import torch\n"
            f"held = torch.load({given}, map_location='cpu', weights_only=False)\n"
            "is_dict = isinstance(held, dict)\n"
            f"held = next((held[k] for k in {_NESTED} if is_dict and k in held), held)\n"
            "held = held if isinstance(held, dict) else held.state_dict()\n"
            "torch.save({k: v for k, v in held.items() if torch.is_tensor(v)}, "
            f"{written})"
        )
    return (
        f"{path} is neither a safetensors file nor a complete PyTorch file ({first_line}); give "
        "one of the two"
    )
