"""Every key of a run, once, with what it means. The other configs change a few of them; so does the command line:

python -m ivt_jax.main --config=configs/cuhk.py --config.data.root=DATA/CUHK-PEDES --config.data.batch_size=56
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The program of this project: MLA + BMM with reconstruction, at the paper's sizes."""
    config = ConfigDict()
    config.seed = 1234  # initialisation, batches, augmentation, masks: all follow from it and the step

    config.data = ConfigDict()
    config.data.name = "cuhk_pedes"  # cuhk_pedes, icfg_pedes, rstp_reid or pedes_synth
    config.data.root = "data/CUHK-PEDES"  # the folder with JSON and imgs/, or a portable one, here or gs://...
    config.data.val_persons = 0.05  # share of training persons held out where the dataset has no validation split
    config.data.max_damaged = 0.005  # share of training images that may be damaged; others of the person stand in
    config.data.label_noise = 0.0  # share of training captions that trade places, to see what a model bears
    config.data.batch_size = 28  # (image, caption) pairs per step, over all devices
    config.data.sampling = "identity"  # identity: `instances` pairs of each person per batch; uniform: a permutation
    config.data.instances = 4

    config.augment = ConfigDict()
    config.augment.pad = 10  # zeros around the resized image before the random crop, pixels
    config.augment.flip = 0.5  # probability of a horizontal flip
    config.augment.erase = 0.5  # probability of random erasing

    config.text = ConfigDict()
    config.text.tokenizer = "bert-base-uncased"  # "" = the shipped vocabulary; a folder; or a name on the hub
    config.text.phrase_rule = "released"  # the phrase level: released (comma parts) or clauses
    config.text.word_rule = "attributes"  # captions without `att`: attributes (by a grammar) or released (a comma part)
    config.text.length = ConfigDict({"sentence": 100, "phrase": 64, "word": 64})  # tokens, [CLS] and [SEP] included

    config.model = ConfigDict()
    config.model.image_size = (384, 128)  # height, width; multiples of patch_size, unless patches overlap
    config.model.patch_size = 16
    config.model.stride = 16  # at most patch_size; below it, patches overlap
    config.model.width = 768
    config.model.depth = 12
    config.model.num_heads = 12
    config.model.mlp_ratio = 4.0
    config.model.vocab_size = 30522  # must be the tokenizer's
    config.model.max_text_length = 512  # text positions
    config.model.dropout = 0.1  # of the text embeddings
    config.model.drop_path = 0.1  # stochastic depth of the last block; grows linearly from 0
    config.model.init_std = 0.02  # deviation of the initial linear layers, class token and positions
    config.model.image_norm = False  # a layer norm on the image tokens before the blocks; CLIP has one
    config.model.image_activation = "gelu"  # of the images' MLPs: gelu, or CLIP's quick_gelu
    config.model.norm_epsilon = 1e-6  # of the tower's norms, ViT's; CLIP has 1e-5
    config.model.dtype = "bfloat16"  # of activations; parameters, norms, softmax and losses are float32
    config.model.remat = False  # recompute cheap activations in the backward pass
    config.model.attention = "xla"  # cudnn: NVIDIA's kernel on a GPU, in bfloat16 alone; elsewhere the same as xla
    config.model.unroll = False  # every block compiled by itself, not one loop: faster steps, longer compiling

    config.mla = ConfigDict()
    config.mla.weight = 1.0
    config.mla.levels = ("sentence", "phrase", "word")
    config.mla.views = 3  # augmented views of each image: one per level, or 1 for all
    config.mla.groups = 1  # equal slices of the batch that are matched by themselves

    config.bmm = ConfigDict()
    config.bmm.align = "exact"  # masked alignment: off, exact (the released draw) or fast (fixed counts, saves time)
    config.bmm.align_ratio = 0.2  # at most this share of tokens is dropped; half of it on average
    config.bmm.word_weight = 1.0  # reconstruction of words from the image and the other words
    config.bmm.word_ratio = 0.3
    config.bmm.patch_weight = 1.0  # reconstruction of patches from the text and the other patches
    config.bmm.patch_ratio = 0.5
    config.bmm.patch_block = 1  # patches are hidden in squares of this side; above 1 for overlapping patches
    config.bmm.rows = 0  # pairs of the batch that are reconstructed, evenly spaced; 0 = all

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd: momentum, coupled decay on everything; adamw
    config.optimizer.schedule = "released"  # released: constant within an epoch; smooth: warm-up and cosine by step
    config.optimizer.learning_rate = 0.005  # peak
    config.optimizer.bias_learning_rate = 0.01  # peak of parameters named bias
    config.optimizer.start = 5e-5  # rate at the start of the warm-up
    config.optimizer.floor = 1e-5  # rate at the end of the cosine
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.momentum = 0.9  # sgd
    config.optimizer.b1 = 0.9  # adamw
    config.optimizer.b2 = 0.98  # adamw
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0  # global gradient norm; 0 = no clipping
    config.optimizer.layer_decay = 1.0  # a block has this times the rate of the one above it; 1 = all the same
    config.optimizer.ema = 0.0  # decay per step of the averaged parameters, which are then evaluated; 0 = no average

    config.train = ConfigDict()
    config.train.epochs = 120  # the last epoch's number
    config.train.first_epoch = 1  # the first epoch's number
    config.train.steps = 0  # ends here instead, where not 0
    config.train.eval_every = 0  # steps between validations, each with a checkpoint; 0 = every epoch
    config.train.select_on = "val"  # split that chooses the best checkpoint; "test" is seen in the report, in red
    config.train.init_from = ""  # a run, an export or converted weights to start from; "" = random parameters
    config.train.max_bad_steps = 1  # non-finite steps in a row that end the run
    config.train.spike_factor = 0.0  # a gradient norm above this times its running median is no step; 0 = all are

    # What is told of a trained model, which a later --mode=evaluate may choose anew.
    config.evaluation = ConfigDict()
    config.evaluation.robustness = True  # score test once more with spoiled queries: typos, a part of the caption, ...
    config.evaluation.rerank = False  # score after k-reciprocal re-ranking as well

    # What may differ when a run is resumed: where and on what it runs, not what it computes.
    config.runtime = ConfigDict()
    config.runtime.mesh = ConfigDict({"data": -1, "fsdp": 1})  # devices along each axis; -1 = the rest
    config.runtime.matching = "global"  # sharded: each device has the similarities of its own rows; for large batches
    config.runtime.microbatches = 1  # parts of the batch, encoded one after another: less memory, more time
    config.runtime.prepared = ""  # folder of the prepared dataset; "" = `prepared` in data.root
    config.runtime.log_every = 50  # steps between log lines
    config.runtime.checkpoint_every = 1000  # steps between checkpoints, besides those at validations
    config.runtime.eval_batch_size = 128
    config.runtime.deterministic = False  # on GPU: deterministic kernels, slower
    config.runtime.heartbeat = 100  # seconds after which a silent process counts as gone, where there are several
    config.runtime.on_damage = "previous"  # a damaged checkpoint: resume from the previous valid one, or "stop"
    config.runtime.watchdog = 1800  # seconds without a step that end the run as hung; 0 = never
    return config


def released(config: ConfigDict) -> ConfigDict:
    """The released recipe: no reconstruction, and its word level; see docs/recipe.md."""
    config.text.word_rule = "released"
    config.bmm.word_weight = 0.0
    config.bmm.patch_weight = 0.0
    return config


def check_variant(variant: str, *known: str) -> str:
    """The variant, where it is one of `known`; otherwise one line that lists them."""
    if variant not in known:
        names = ", ".join(f":{name}" if name else "(none)" for name in known)
        raise ValueError(f"this config has no variant :{variant}; it has {names}")
    return variant
