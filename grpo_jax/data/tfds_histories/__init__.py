"""tensorflow-datasets builder of learning histories, in a folder of its own as tfds expects."""
