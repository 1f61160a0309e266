"""Writes each tower as an ONNX file, which onnxruntime serves without JAX or PyTorch.

open_clip's model gets the same weights, and PyTorch's own converter traces it. Before the export is
finished, both files are run and compared with the JAX model.
"""

import importlib
import json
import logging
import pathlib
import warnings
from types import ModuleType

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from google.protobuf.message import Message

from cyclip_jax import __version__
from cyclip_jax.errors import UserError
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.interop.files import to_tensor
from cyclip_jax.interop.open_clip_config import open_clip_config
from cyclip_jax.models.clip import CLIP, normalise_images, unit_norm

# The largest absolute difference to the JAX model that an entry of a unit-norm embedding may have.
# In float32 it is a few 1e-6; with weights rounded to float16 it is some 1e-3.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}

# Arrays with fewer numbers (biases, scales, constants) stay in float32: they hardly add to a file.
SMALLEST_ROUNDED = 1024


def write_onnx(
    folder: epath.Path, checkpoint: Checkpoint, model: CLIP, dtype: str
) -> dict[str, float]:
    """Writes image.onnx and text.onnx, and compares them with the model.

    image.onnx takes `images`, uint8 [batch, image_size, image_size, 3], which are RGB pixels,
    resized and cropped; it normalises them itself. It gives `image_embeds`, float32
    [batch, embed_dim] of unit norm.
    text.onnx takes `tokens`, int64 [batch, context_length], and gives `text_embeds`, float32
    [batch, embed_dim] of unit norm. NumPy makes int64 of a list of ids, and other tokenizers give
    it.

    The metadata of each file tell in JSON the logit_scale (the factor, exponentiated), the
    logit_bias if there is one, the sizes, and how pictures are prepared.

    Args:
      folder: a local epath.Path.
      checkpoint: a completed Checkpoint.
      model: its CLIP module in evaluation mode.
      dtype: the dtype of the stored weights. "float16" halves the files; computations stay in
        float32.

    Returns:
      {"image.onnx": difference, "text.onnx": difference}, the largest absolute difference between
      an entry of an embedding and that of the JAX model.

    Raises:
      UserError: the dtype is another one, or a package is missing.
      RuntimeError: the embeddings of a file are not those of the model (see TOLERANCES).
    """
    if dtype not in TOLERANCES:
        raise UserError(f"an ONNX file can have the dtype {' or '.join(TOLERANCES)}, not {dtype!r}")
    torch, open_clip, onnx, _ = require_packages()
    towers = _towers(torch, _open_clip_model(torch, open_clip, checkpoint), checkpoint.preprocess)
    metadata = {
        "producer": f"cyclip_jax {__version__}",
        "logit_scale": float(jnp.exp(model.logit_scale[...])),
        "dtype": dtype,
        **checkpoint.preprocess,
        **checkpoint.model,
        **({} if model.logit_bias is None else {"logit_bias": float(model.logit_bias[...])}),
    }
    examples = _examples(checkpoint.model)
    differences = {}
    for name, tower in towers.items():
        path, inputs = folder / f"{name}.onnx", examples[name]
        _convert(torch, onnx, tower, torch.from_numpy(inputs), path, dtype, metadata)
        expected = _expected(model, inputs, checkpoint.preprocess)
        differences[path.name] = check_onnx(path, inputs, expected, TOLERANCES[dtype])
    return differences


def check_onnx(
    path: pathlib.PurePath, inputs: np.ndarray, expected: np.ndarray, tolerance: float
) -> float:
    """Runs an ONNX file in onnxruntime and compares its output with what is expected.

    Args:
      path: an ONNX file with one input and one output.
      inputs: the array for its input.
      expected: the output that it should have.
      tolerance: the largest absolute difference that is allowed.

    Returns:
      The largest absolute difference.

    Raises:
      RuntimeError: the difference is above the tolerance.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs})
    difference = float(np.max(np.abs(found - expected)))
    if not difference <= tolerance:  # `difference > tolerance` would let NaN pass
        raise RuntimeError(
            f"{path.name} gives embeddings that differ from the model's by {difference:.2g}, more "
            f"than {tolerance:g}"
        )
    return difference


def require_packages() -> list[ModuleType]:
    """Imports the packages that an export needs.

    Returns:
      The modules torch, open_clip, onnx and onnxruntime.

    Raises:
      UserError: a package is missing, or torchvision is of another build than PyTorch.
    """
    try:
        importlib.import_module("onnxscript")  # PyTorch's converter needs it
        return [
            importlib.import_module(name) for name in ("torch", "open_clip", "onnx", "onnxruntime")
        ]
    except ImportError as error:
        raise UserError(f"{error}; for ONNX run pip install 'cyclip_jax[onnx]'") from error
    except RuntimeError as error:
        raise UserError(
            f"open_clip cannot be imported ({error}); install PyTorch and torchvision of one build"
        ) from error


def _open_clip_model(torch, open_clip, checkpoint):
    model = open_clip.CLIP(**open_clip_config(checkpoint, hf_tokenizer=False)["model_cfg"])
    weights = {name: to_tensor(torch, array) for name, array in checkpoint.weights.items()}
    model.load_state_dict(weights)
    return model.eval()


def _towers(torch, model, preprocess):
    """Returns {"image": module, "text": module}, which embed uint8 pixels and token ids."""
    mean = torch.tensor(preprocess["image_mean"])[:, None, None]
    std = torch.tensor(preprocess["image_std"])[:, None, None]

    class Image(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model.visual

        def forward(self, images):
            pixels = images.permute(0, 3, 1, 2).float() / 255
            return torch.nn.functional.normalize(self.model((pixels - mean) / std), dim=-1)

    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model.encode_text(tokens, normalize=True)

    return {"image": Image().eval(), "text": Text().eval()}


def _convert(torch, onnx, tower, inputs, path, dtype, metadata):
    """Traces a tower and writes its file with weights of `dtype`."""
    name = path.name.removesuffix(".onnx")
    # The converter warns of its own dependencies and of everything that it does not optimise.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            tower,
            (inputs,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images" if name == "image" else "tokens"],
            output_names=[f"{name}_embeds"],
            verbose=False,
        )
    graph = program.model_proto
    _remove_traces(graph)
    if dtype == "float16":
        _store_in_float16(onnx, graph)
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=json.dumps(value))
    size = graph.ByteSize()
    # A protobuf message holds at most 2 GiB: more weights go into a file of their own.
    is_large = size > 2**31 - 2**20
    onnx.save(graph, str(path), save_as_external_data=is_large, location=f"{path.name}.data")
    onnx.checker.check_model(str(path))


def _remove_traces(message):
    """Removes what the converter notes of every node: where its code lies on this machine."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                _remove_traces(part)


def _store_in_float16(onnx, graph):
    """Halves the file: rounds the large weights, and casts them back where they are used."""
    for initializer in list(graph.graph.initializer):
        is_float = initializer.data_type == onnx.TensorProto.FLOAT
        if not is_float or np.prod(initializer.dims) < SMALLEST_ROUNDED:
            continue
        name = initializer.name
        rounded = onnx.numpy_helper.to_array(initializer).astype(np.float16)
        initializer.CopyFrom(onnx.numpy_helper.from_array(rounded, f"{name}.float16"))
        cast = onnx.helper.make_node("Cast", [f"{name}.float16"], [name], to=onnx.TensorProto.FLOAT)
        graph.graph.node.insert(0, cast)


def _examples(sizes):
    """Draws three pictures (uint8) and three texts (token ids): {"image": …, "text": …}."""
    rng = np.random.default_rng(0)
    size, length, vocab_size = (sizes[k] for k in ("image_size", "context_length", "vocab_size"))
    tokens = rng.integers(1, vocab_size - 2, (3, length))
    for row, end in zip(tokens, rng.integers(1, length, 3), strict=True):
        row[end], row[end + 1 :] = vocab_size - 1, 0
    return {"image": rng.integers(0, 256, (3, size, size, 3), np.uint8), "text": tokens}


def _expected(model, inputs, preprocess):
    """Computes the embeddings of pictures (uint8) or texts (token ids) with the JAX model."""
    if inputs.dtype == np.uint8:
        mean, std = preprocess["image_mean"], preprocess["image_std"]
        encode, inputs = CLIP.encode_image, normalise_images(inputs, mean=mean, std=std)
    else:
        encode, inputs = CLIP.encode_text, jnp.asarray(inputs, jnp.int32)
    return np.asarray(
        nnx.jit(lambda model, inputs: unit_norm(encode(model, inputs)))(model, inputs)
    )
