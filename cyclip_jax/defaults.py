"""The defaults of every experiment: each field once, with what it means."""

import re

import ml_collections
from ml_collections.config_dict import placeholder

from cyclip_jax.models.clip import IMAGE_MEAN, IMAGE_STD


def get_config():
    """Returns the defaults; an experiment's file changes only what is special about it."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # initial parameters, order of the examples, augmentations
    config.batch_size = 128  # pairs per step over all devices
    # Parts in which the towers take the batch, for less memory and a second forward pass. The
    # gradient is the whole batch's; BatchNorm's statistics are each part's, and follow their mean.
    config.micro_batches = 1
    config.total_steps = placeholder(int)  # length of the run in steps; this or num_epochs
    config.num_epochs = placeholder(int)  # length of the run in passes over the training data
    config.log_every_steps = 50  # how often metrics are fetched from the device and written
    config.eval_every_steps = 0  # how often `evals` run; 0 is only after the last step
    config.checkpoint_every_steps = 1000  # how often, besides after the last step
    config.keep_checkpoints = 3  # the newest so many stay
    config.keep_every_steps = placeholder(int)  # checkpoints at multiples of this stay for good
    config.init_from = placeholder(str)  # a workdir, export or file whose weights a new run takes
    config.max_skipped_in_a_row = 10  # non-finite steps in a row that end the run
    # Of the towers: by default TPUs multiply float32 in bfloat16 and GPUs in TF32; "float32" does
    # not. The losses are always computed in full precision.
    config.matmul_precision = "default"
    # Compiled code is kept here, e.g. in "{workdir}/compilation_cache", so that a restart compiles
    # nothing. It is executed: only a directory in which nobody else can write.
    config.compilation_cache = placeholder(str)
    config.profile_steps = placeholder(tuple)  # (first, last) to trace; SIGUSR1: the next ten
    config.stall_factor = 10.0  # what takes so many times its median is reported; 0 is never

    config.wandb = wandb = ml_collections.ConfigDict()  # Weights & Biases
    wandb.project = placeholder(str)  # where every metric goes too; by default nothing is sent
    wandb.entity = placeholder(str)  # user or team; default the one logged in
    wandb.name = placeholder(str)  # of the run; default the workdir's
    wandb.mode = placeholder(str)  # "online", "offline", "disabled"; default $WANDB_MODE, or online

    config.model = model = ml_collections.ConfigDict()
    model.name = "RN50"  # a preset of cyclip_jax/models/presets.py; what follows overrides it
    model.image_size = placeholder(int)  # pixels per side
    model.embed_dim = placeholder(int)  # width of the shared embedding space
    model.vision_tower = placeholder(str)  # "resnet" or "vit"; default by vision_layers or preset
    model.pool = placeholder(str)  # ResNet: "attention"; ViT: "class_token"; default the tower's
    model.vision_layers = placeholder(object)  # blocks; a tuple of four for a ResNet
    model.vision_width = placeholder(int)  # channels of the ViT or after the ResNet's stem
    model.vision_heads = placeholder(int)  # by default one per 64 channels
    model.patch_size = placeholder(int)  # pixels per side, ViT only
    model.text_width = placeholder(int)  # channels of the text transformer
    model.text_layers = placeholder(int)  # blocks of the text transformer
    model.text_heads = placeholder(int)  # by default one per 64 channels
    model.context_length = placeholder(int)  # tokens per caption, both ends included
    model.vocab_size = placeholder(int)  # ids of the tokenizer
    model.quick_gelu = True  # x·σ(1.702 x) as OpenAI, or the exact GELU
    model.dtype = "float32"  # of the towers' computation, or "bfloat16"; parameters are float32
    model.batch_norm_group_size = placeholder(int)  # images per group; default the whole batch
    model.initial_weights_dtype = "float32"  # or "float16": initial weights are rounded to it
    model.attention = "auto"  # "cudnn" in bfloat16 on NVIDIA's GPUs, else "xla"; or one of them
    model.vision_remat = "none"  # or "dots", "full": activations recomputed to save memory
    model.text_remat = "none"  # the same of the text tower
    model.scan_blocks = False  # transformer blocks as a loop: compiles faster; is to go with remat

    # Cheaper steps: what the towers see of images and texts.
    config.tokens = tokens = ml_collections.ConfigDict()
    tokens.patch_dropping = "none"  # ViT: or "random", or "grid": one patch of each window
    tokens.kept_patches = 0.5  # share of the patches that is seen where some are dropped
    tokens.text_length = placeholder(int)  # tokens of a caption that are seen, default all
    tokens.full_steps = 0  # so many steps at the end of the run see everything

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.fsdp = 1  # devices that share one copy of parameters and optimiser state
    mesh.fsdp_min_size = 2**16  # parameters of fewer numbers stay whole

    config.loss = loss = ml_collections.ConfigDict()
    loss.inmodal_weight = 0.25  # λ1 of the paper
    loss.crossmodal_weight = 0.25  # λ2 of the paper
    loss.cyclic_normalization = "reference"  # 1/N as published, or "batch_size_free": ·128/N
    loss.chunk_size = 256  # rows of each device in a tile of similarities; only memory and speed
    loss.detached_gather_devices = 1  # W > 1 divides the towers' gradients by W, as published

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 5e-4  # at the end of the warm-up
    optimizer.warmup_steps = 10_000  # linear, then half a cosine to zero
    optimizer.schedule_offset_epochs = 0  # epochs of the schedule that are skipped at its start
    optimizer.beta1 = 0.9
    optimizer.beta2 = 0.999
    optimizer.eps = 1e-8
    optimizer.first_moment_dtype = "float32"  # or "bfloat16", for less memory
    optimizer.weight_decay = 0.1  # per unit of the learning rate
    # "matrices": kernels, projections and the token embedding; or "official_names": some norms'
    # scales and the positional and class embeddings too.
    optimizer.weight_decay_rule = "matrices"
    optimizer.gradient_clip_norm = placeholder(float)  # global norm; default no clipping

    config.data = data = ml_collections.ConfigDict()
    # Kind of `train` and `validation`: "auto" goes by their ending; or "csv", "webdataset",
    # "tfrecord", "tfds", "parquet", "mixture"; "emoji" builds its own.
    data.source = "auto"
    # A CSV, shards by glob or braces, or tfds:NAME; {workdir} stands for the run's directory.
    data.train = placeholder(str)
    data.validation = placeholder(str)  # pairs that `evals.val` scores; default none
    data.mixture = ml_collections.ConfigDict()  # {name: part(…)}, for the source "mixture"
    data.image_key = placeholder(str)  # column, feature or file ending; default the source's usual
    data.caption_key = placeholder(object)  # the same of the caption; or a tuple of several
    data.caption_weights = placeholder(object)  # how often each of several is drawn; default equal
    data.templates = ()  # sentences with {} that stand around captions, one drawn at a time
    data.delimiter = ","  # between a CSV's columns; "\t" for TSV
    data.shuffle = True  # anew in each epoch, by seed
    data.shuffle_window = placeholder(int)  # mix so many neighbours, for slow storage; default all
    data.tokenizer = "clip_bpe"  # or "sentencepiece"
    data.vocabulary = placeholder(str)  # its file; default an installed package's, or trained here
    data.keep_end_of_text = True  # of captions too long for the context; see tokenizers.py
    data.image_mean = IMAGE_MEAN  # of the RGB values in [0, 1], which is subtracted
    data.image_std = IMAGE_STD  # by which they are then divided
    data.decoder = "exact"  # Pillow's pixels but for rounding, or "fast": see images.py
    data.max_pixels = 100_000_000  # of a picture; larger ones are not decoded
    data.augmentation = "none"  # resize and centre crop, or "random_resized_crop"
    data.crop_scale = (0.9, 1.0)  # area that a random crop keeps
    data.horizontal_flip = False  # of every other image
    data.policy = "none"  # or "randaugment", "autoaugment"
    data.colour_jitter = 0.0  # strength of random brightness, contrast, saturation and hue
    data.max_bad_share = 0.01  # unreadable share of the examples that stops the run

    config.evals = ml_collections.ConfigDict()  # {name: evaluator and its arguments}
    config.evals.val = retrieval(config, config.data.get_ref("validation"))
    return config


def part(train, weight=1.0, **settings):
    """Returns the settings of one source of config.data.mixture.

    Args:
      train: as config.data.train.
      weight: its share, in relation to the others'; or pairs (step, weight), with weights in
        between that change linearly.
      settings: source, image_key, caption_key, … where they differ from config.data's.
    """
    return ml_collections.ConfigDict({"train": train, "weight": weight, **settings})


def retrieval(config, pairs, **arguments):
    """Returns the settings of a retrieval evaluation.

    Args:
      config: whose data say how `pairs` is read.
      pairs: a file like data.train, a .json of Karpathy's splits, or a folder of CLIP_benchmark's.
      arguments: other settings of the evaluator.
    """
    settings = ml_collections.ConfigDict({"type": "retrieval"})
    settings.pairs = pairs
    for name in ("source", "image_key", "caption_key", "delimiter"):
        settings[name] = config.data.get_ref(name)
    settings.images = placeholder(str)  # folder of the pictures of a .json; default its own
    settings.split = "test"  # of a .json or folder
    settings.captions_per_image = placeholder(int)  # the first so many are scored; default all
    settings.published_recall = False  # adds the inflated recall beside the true one
    settings.update(arguments)
    return settings


def compositional(examples, **arguments):
    """Returns the settings of a choice between captions or pictures that differ by little.

    Args:
      examples: a file, or a folder with one for each category.
      arguments: other settings of the evaluator: layout, images, category_key.
    """
    settings = ml_collections.ConfigDict({"type": "compositional", "examples": examples})
    settings.layout = "choice"  # as ARO and SugarCrepe, or "winoground"
    settings.images = placeholder(str)  # folder of the pictures; default that of the examples
    settings.update(arguments)
    return settings


def zeroshot(folder=None, preset=None, **arguments):
    """Returns the settings of a zero-shot evaluation.

    Args:
      folder: labelled pictures, see cyclip_jax/evals/data/labelled.py.
      preset: a data set that cyclip_jax/evals/data/known.py knows, in `folder` or else in
        TensorFlow Datasets.
      arguments: split, classes, image_key, label_key.
    """
    settings = ml_collections.ConfigDict({"type": "zeroshot"})
    for name in ("folder", "preset", "split", "classes", "image_key", "label_key"):
        settings[name] = placeholder(str)
    if folder is None and preset is not None:
        folder = f"preset:{preset}"
    settings.update({"folder": folder, "preset": preset} | arguments)
    return settings


def robustness(reference, shifts, **arguments):
    """Returns the settings of zero-shot evaluations of {name: settings} beside a reference set's.

    Args:
      reference, shifts: zero-shot settings, as {"preset": "imagenet"} or {"folder": …}.
      arguments: models, scale.
    """
    settings = ml_collections.ConfigDict({"reference": reference, "shifts": shifts})
    settings.type = "robustness"  # an evaluator's name
    settings.models = placeholder(str)  # CSV of reference models, which gives the shifts lines
    settings.scale = "logit"  # in what a line is fitted, or "linear"
    settings.update(arguments)
    return settings


def linear_probe(train, test, **arguments):
    """Returns the settings of a linear probe by AdamW, on two sets of labelled images.

    Args:
      train, test: labelled images.
      arguments: other settings: epochs, learning_rate, …; with method="lbfgs", as older config
        files have it, they are those of `logistic_probe`.
    """
    if arguments.get("method") == "lbfgs":
        idle = ("method", "batch_size", "epochs", "learning_rate", "weight_decay")
        kept = {name: value for name, value in arguments.items() if name not in idle}
        return logistic_probe(train, test, **kept)
    settings = ml_collections.ConfigDict({"type": "linear_probe", "train": train, "test": test})
    settings.batch_size = 16  # of the classifier's training, as in the published probe script
    settings.update(arguments)
    return settings


def logistic_probe(train, test, **arguments):
    """Returns the settings of logistic regression, CLIP's linear probe, on labelled images.

    Args:
      train, test: labelled images.
      arguments: other settings: regularization, validation_share, max_iterations, …
    """
    settings = {"type": "logistic_probe", "train": train, "test": test}
    return ml_collections.ConfigDict(settings | arguments)


def few_shot(train, test, **arguments):
    """Returns the settings of linear probes trained on k labelled images of each class."""
    return ml_collections.ConfigDict({"type": "few_shot", "train": train, "test": test} | arguments)


def gda(train, test, **arguments):
    """Returns the settings of zero-shot with Gaussian discriminant analysis of labelled images."""
    return ml_collections.ConfigDict({"type": "gda", "train": train, "test": test} | arguments)


def consistency(train, test, **arguments):
    """Returns the settings of a consistency evaluation between two sets of labelled images."""
    settings = {"type": "consistency", "train": train, "test": test}
    return ml_collections.ConfigDict(settings | arguments)


def geometry(pairs, **arguments):
    """Returns the settings of a measurement of the embeddings of `pairs`, a file as data.train."""
    return ml_collections.ConfigDict({"type": "geometry", "pairs": pairs} | arguments)


def resolve_paths(config, workdir):
    """A locked copy of the config in which {workdir} in any string is the run's directory."""

    def resolve(value):
        if isinstance(value, dict):
            return {key: resolve(inner) for key, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(map(resolve, value))
        if isinstance(value, str) and "{workdir}" in value:
            # Remote file systems know no "..", and local ones only of directories that exist.
            return re.sub(r"/[^/]+/\.\.(?=/|$)", "", value.replace("{workdir}", str(workdir)))
        return value

    return ml_collections.ConfigDict(resolve(config.to_dict())).lock()


def _completed(config, defaults):
    """The nested dict `config` with the fields of `defaults` that it lacks, but for evaluations."""
    missing = {key: value for key, value in defaults.items() if key not in config}
    return missing | {
        key: _completed(value, defaults[key])
        if isinstance(defaults.get(key), dict) and key != "evals"
        else value
        for key, value in config.items()
    }


def flat(config, prefix=""):
    """{"data.train": …} of a nested config."""
    settings = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            settings |= flat(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings
