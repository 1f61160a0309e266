"""Imported before TensorFlow, which only reads data here: its notices would hide ours."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not used, but announced
