"""From raw dataset folders to training batches: the only package that imports TensorFlow."""

import os

# TensorFlow reads images here and nothing else; it need not tell about the processor each time it starts.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
