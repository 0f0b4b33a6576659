"""Every key of a run, with its meaning and its bounds. The other configs and the command line change some of them:

python -m ivt_jax.main --config=configs/cuhk.py --config.data.root=DATA/CUHK-PEDES --config.data.batch_size=56
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs.starts import STARTS


def get_config() -> ConfigDict:
    """Returns the config of MLA + BMM with reconstruction, at the paper's sizes."""
    config = ConfigDict()
    config.seed = 1234  # decides, with the step, initialisation, batches, augmentation and masks; 0 or more

    config.data = ConfigDict()
    # cuhk_pedes, icfg_pedes, rstp_reid, pedes_synth; own: a table of own pictures; pairs: an index of image-text pairs;
    # joint: the datasets of `sources`
    config.data.name = "cuhk_pedes"
    config.data.root = "data/CUHK-PEDES"  # folder, local or (portable, index) gs://..., or the JSON file or table in it
    config.data.sources = ()  # with name joint, the datasets to train on, instead of root: ("cuhk:DIR", "own:my.csv")
    config.data.weights = ()  # share of each source in an epoch, more than 0, of any sum; () = by size
    config.data.title = ""  # the dataset's name in reports and model cards; "" = its published one, or the table's
    config.data.identities = True  # False: as pairs from the web, each image is a person of its own; uniform sampling
    config.data.val_persons = 0.05  # share of training persons held out if the dataset has no val split; 0 to below 1
    config.data.max_damaged = 0.005  # share of training images that may be damaged; others replace them; 0 to 1
    config.data.label_noise = 0.0  # share of training captions that are swapped, to measure robustness; 0 to 1
    config.data.batch_size = 28  # (image, caption) pairs per step, over all devices; 1 or more
    config.data.sampling = "identity"  # identity: `instances` pairs of each person per batch; uniform: a permutation
    config.data.instances = 4  # pairs of a person in a batch, with identity sampling; divides batch_size

    config.augment = ConfigDict()
    config.augment.pad = 10  # zeros around the resized image before the random crop, pixels; below both sides
    config.augment.flip = 0.5  # probability of a horizontal flip; 0 to 1
    config.augment.erase = 0.5  # probability of random erasing; 0 to 1

    config.text = ConfigDict()
    config.text.tokenizer = "bert-base-uncased"  # a name on the hub; a folder; or "": the shipped vocabulary
    config.text.clean = ""  # "": the tokenizer's own rules; released: marks removed, no [SEP], as IVT's pre-training
    config.text.phrase_rule = "released"  # phrase level: released (comma parts) or clauses
    config.text.word_rule = "attributes"  # captions without `att`: attributes (by a grammar) or released (a comma part)
    config.text.length = ConfigDict({"sentence": 100, "phrase": 64, "word": 64})  # tokens with [CLS], [SEP]; 3 or more

    config.model = ConfigDict()
    config.model.image_size = (384, 128)  # height, width; multiples of patch_size, unless patches overlap
    config.model.patch_size = 16  # side in pixels; 1 or more
    config.model.stride = 16  # pixels between patches; 1 to patch_size, below which patches overlap
    config.model.width = 768  # of a token; a multiple of num_heads
    config.model.depth = 12  # blocks; 1 or more
    config.model.num_heads = 12  # 1 or more
    config.model.mlp_ratio = 4.0  # hidden units of an MLP / width; more than 0
    config.model.vocab_size = 30522  # must be the tokenizer's
    config.model.max_text_length = 512  # text positions; at least every text.length
    config.model.dropout = 0.1  # of the text embeddings; 0 to below 1
    config.model.drop_path = 0.1  # stochastic depth of the last block, growing linearly from 0; 0 to below 1
    config.model.init_std = 0.02  # standard deviation of initial linear layers, class token, positions; more than 0
    config.model.image_norm = False  # a layer norm on the image tokens before the blocks, as in CLIP
    config.model.image_activation = "gelu"  # of the image MLPs: gelu, CLIP's quick_gelu or SigLIP's gelu_tanh
    config.model.pixel_mean = (0.5, 0.5, 0.5)  # of red, green and blue, subtracted from pixels of 0 to 1; 0 to 1 each
    config.model.pixel_deviation = (0.5, 0.5, 0.5)  # of red, green and blue; divides them after that; more than 0
    config.model.relative_positions = False  # learned biases on attention scores, by offset, head and layer, as in VLMo
    config.model.projection = 0  # width of embeddings after a linear layer per modality; 0 = no layer, tokens' width
    config.model.towers = 1  # 1; or 2: for images (sizes above) and for texts (model.text), without reconstruction
    config.model.pooling = "class"  # of images: class (the class token) or, with towers 2, attention (as SigLIP)
    config.model.text = ConfigDict()  # the text tower, with towers 2
    config.model.text.width = 512  # of a token; a multiple of num_heads
    config.model.text.depth = 12  # blocks; 1 or more
    config.model.text.num_heads = 8  # 1 or more
    config.model.text.mlp_ratio = 4.0  # hidden units of an MLP / width; more than 0
    config.model.text.activation = "gelu"  # of its MLPs: gelu, CLIP's quick_gelu or SigLIP's gelu_tanh
    config.model.text.causal = False  # a token attends to no later one, as in CLIP; not with pooling first
    config.model.text.pooling = "first"  # token used as embedding: first, end (last but padding), last (place)
    config.model.text.projection_bias = False  # a bias of the projection of texts, as in SigLIP; needs projection
    config.model.norm_epsilon = 1e-6  # of all layer norms, as in ViT; CLIP has 1e-5; more than 0
    config.model.dtype = "bfloat16"  # of activations, or float32; parameters, norms, softmax, losses are float32
    config.model.remat = False  # recompute cheap activations in the backward pass: less memory
    config.model.attention = "xla"  # cudnn: NVIDIA's kernel on a GPU, needs bfloat16; elsewhere the same as xla
    config.model.unroll = False  # compile each block by itself instead of one loop: faster steps, longer compilation

    config.mla = ConfigDict()
    config.mla.weight = 1.0  # 0 or more
    config.mla.levels = ("sentence", "phrase", "word")  # some of these three
    config.mla.views = 3  # augmented views of each image: one per level, or 1 for all levels
    config.mla.groups = 1  # equal slices of the batch, each matched separately; divides batch_size

    config.match = ConfigDict()  # how mla matches, as losses/matching.py says
    config.match.loss = "cmpm"  # cmpm; sdm of IRRA; itc, contrastive; or tal of RDE: each over all levels at once
    # Similarities are divided by it; more than 0, or 0 for the scale that the model learns (model.projection or towers
    # 2). Published: 1 with cmpm, 0.02 with sdm, 0.015 with tal; CLIP's begins at 0.07.
    config.match.temperature = 1.0
    config.match.learned = False  # learn the temperature, from match.temperature on; it stays at 0.01 or more
    # The embeddings that are scaled to length 1 first: both, neither, or published: for cmpm only those that a query is
    # compared with, for sdm, itc and tal both.
    config.match.normalise = "published"

    config.id = ConfigDict()
    config.id.weight = 0.0  # classify images and texts by training person, as IRRA does; 0 or more, 0 = no classifier

    config.itm = ConfigDict()
    config.itm.weight = 0.0  # image-text matching with hard negatives, in a joint pass; 0 or more, 0 = no classifier

    config.bmm = ConfigDict()
    config.bmm.align = "exact"  # masked alignment: off, exact (the released draw) or fast (fixed counts, saves time)
    config.bmm.align_ratio = 0.2  # largest share of tokens that is dropped; half of it on average; 0 to 1
    config.bmm.word_weight = 1.0  # reconstruction of words from the image and the other words; 0 or more
    config.bmm.word_ratio = 0.3  # share of words that is hidden; 0 to 1
    config.bmm.patch_weight = 1.0  # reconstruction of patches from the text and the other patches; 0 or more
    config.bmm.patch_ratio = 0.5  # share of patches that is hidden; 0 to 1
    config.bmm.patch_block = 1  # side of the squares in which patches are hidden; above 1 for overlapping patches
    config.bmm.rows = 0  # pairs of the batch to reconstruct, evenly spaced; a divisor of batch_size, or 0 = all

    config.optimizer = ConfigDict()
    # sgd (momentum, coupled weight decay on everything), adam (coupled), adamw, or muon (the kernels of the blocks; the
    # rest by adamw)
    config.optimizer.name = "sgd"
    config.optimizer.schedule = "released"  # released: constant within an epoch; smooth: warm-up and cosine by step
    config.optimizer.learning_rate = 0.005  # peak; 0 or more
    config.optimizer.bias_learning_rate = 0.01  # peak for parameters named bias; 0 or more
    config.optimizer.start = 5e-5  # learning rate at the start of the warm-up; 0 or more
    config.optimizer.floor = 1e-5  # learning rate at the end of the cosine; 0 or more
    config.optimizer.warmup_epochs = 5.0  # 0 or more
    config.optimizer.momentum = 0.9  # of sgd and muon; 0 to below 1
    config.optimizer.b1 = 0.9  # of adam, adamw and muon; 0 to below 1
    config.optimizer.b2 = 0.98  # of adam, adamw and muon; 0 to below 1
    config.optimizer.epsilon = 1e-8  # of adam, adamw and muon, added to the root of the second moment; more than 0
    config.optimizer.weight_decay = 1e-4  # 0 or more
    config.optimizer.clip_norm = 0.0  # largest global gradient norm; 0 = no clipping
    config.optimizer.layer_decay = 1.0  # learning rate of a block / that of the block above; 0 to 1, 1 = all equal
    # Factors of the learning rate by parameter path: "PATTERN=FACTOR", such as "id_head/=5"; the first pattern that is
    # found in the path counts. FACTOR is 0 or more.
    config.optimizer.multipliers = ()
    config.optimizer.ema = 0.0  # decay per step of averaged parameters, which are evaluated; 0 to below 1, 0 = off

    config.train = ConfigDict()
    config.train.epochs = 120  # number of the last epoch; 1 or more
    config.train.first_epoch = 1  # number of the first epoch; 0 to epochs
    config.train.steps = 0  # stop after this many steps instead; 0 = train all epochs
    config.train.eval_every = 0  # steps between validations, each with a checkpoint; 0 = every epoch
    config.train.select_on = "val"  # split that chooses the best checkpoint; the report marks "test" in red
    config.train.init_from = ""  # a run, an export or converted weights to start from; "" = random parameters
    config.train.freeze = ()  # patterns; parameters with a matching path are not trained, e.g. ("^similarity/",)
    config.train.max_bad_steps = 1  # non-finite steps in a row that end the run; 1 or more
    config.train.spike_factor = 0.0  # skip steps with a gradient norm above this times the running median; 0 = none

    # What an evaluation reports; may be changed for --mode=evaluate.
    config.evaluation = ConfigDict()
    config.evaluation.robustness = True  # also score test with perturbed queries: typos, parts of the caption, ...
    config.evaluation.rerank = False  # also score after k-reciprocal re-ranking

    # These may change when a run resumes: they do not change what is computed.
    config.runtime = ConfigDict()
    config.runtime.mesh = ConfigDict({"data": -1, "fsdp": 1})  # devices along each axis, 1 or more; -1 = the rest
    config.runtime.matching = "global"  # sharded: each device has the similarities of its own rows; for large batches
    config.runtime.microbatches = 1  # parts of the batch encoded in turn: less memory, more time; 1 or more
    config.runtime.prepared = ""  # folder of prepared datasets; "" = `prepared` in data.root
    config.runtime.log_every = 50  # steps between log lines; 1 or more
    config.runtime.checkpoint_every = 1000  # steps between checkpoints, besides those at validations; 1 or more
    config.runtime.eval_batch_size = 128  # 1 or more
    config.runtime.deterministic = False  # on GPU: deterministic kernels, slower
    config.runtime.heartbeat = 100  # with several processes: seconds after which a silent one counts as lost
    config.runtime.on_damage = "previous"  # a damaged checkpoint: resume from the previous valid one, or "stop"
    config.runtime.watchdog = 1800  # seconds without a step that end the run as hung; 0 = never
    return config


def with_variant(config: ConfigDict, variant: str, **more: Callable[[ConfigDict], ConfigDict]) -> ConfigDict:
    """Returns the config in its variant: "" (unchanged), "release", "smoke", one of STARTS, or one of `more`."""
    variants = {"": lambda config: config, "release": released, "smoke": smoke, **STARTS, **more}
    return variants[check_variant(variant, *variants)](config)


def released(config: ConfigDict) -> ConfigDict:
    """Changes the config to the released recipe: no reconstruction, and the released word level; see docs/recipe.md."""
    config.text.word_rule = "released"
    config.bmm.word_weight = 0.0
    config.bmm.patch_weight = 0.0
    return config


def pretrained_on_pairs(config: ConfigDict) -> ConfigDict:
    """Changes the config to the losses of pre-training, on pairs without identities: ITC, ITM and MLM."""
    config.data.update({"identities": False, "sampling": "uniform", "instances": 1})
    config.mla.update({"levels": ("sentence",), "views": 1, "weight": 0.5})  # the mean of both directions
    config.match.update({"loss": "itc", "normalise": "published", "temperature": 0.07, "learned": True})
    config.itm.weight = 1.0
    config.bmm.update(
        {"align": "off", "word_weight": 1.0, "word_ratio": 0.25, "patch_weight": 0.0, "patch_block": 1, "rows": 0}
    )
    config.evaluation.robustness = False
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """Changes the config to a few steps of a tiny tower on the same dataset: minutes on a CPU, and no download."""
    config.data.batch_size = 8
    config.data.instances = 2
    config.augment.pad = 2
    config.text.tokenizer = ""
    config.text.length = ConfigDict({"sentence": 32, "phrase": 16, "word": 16})
    config.model.update(
        {"image_size": (96, 32), "width": 64, "depth": 2, "num_heads": 4, "vocab_size": 2726, "max_text_length": 32,
         "dtype": "float32"}
    )  # fmt: skip
    config.train.steps = 4
    config.evaluation.robustness = False
    config.runtime.log_every = 1
    return config


def check_variant(variant: str, *known: str) -> str:
    """Returns the variant. Raises ValueError, in one line, if it is not one of `known`."""
    if variant not in known:
        names = ", ".join(f":{name}" if name else "(none)" for name in known)
        raise ValueError(f"this config has no variant :{variant}; it has {names}")
    return variant
