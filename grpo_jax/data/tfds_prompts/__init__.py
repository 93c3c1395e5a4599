"""tensorflow-datasets builder of prompts, in a folder of its own as tfds expects."""
