"""Makes training batches from dataset folders. The only package that imports TensorFlow."""

import os

# TensorFlow only reads images here; without these it prints about the processor at every start.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
