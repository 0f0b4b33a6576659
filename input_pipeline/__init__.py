"""From raw dataset folders to training batches: the only package that imports TensorFlow."""
