"""What the files and folders of a run are called, each once."""

CONFIG = "config.json"
METRICS = "metrics.jsonl"
MEANINGS = "metrics.json"  # of the numbers of training
LOG = "train.log"
CHECKPOINTS = "checkpoints"
DAMAGED_CHECKPOINTS = "damaged_checkpoints"
EVALS = "evals"
OF_AVERAGE = "_of_average"  # behind the name of an evaluation that scored the average of weights
OF_WINDOWS = "_of_windows"  # behind that of one that read long texts in windows
FIGURES = "figures"
REPORT = "report.html"
TENSORBOARD = "tensorboard"
PROFILES = "profile"
HEARTBEAT = "heartbeat.json"
LOCK = "run.lock"
TOKENIZER = "tokenizer.model"
CLASSES = "classes.json"  # of a fine-tuned model's head, in their order
WISE_FT = "wise_ft.json"  # accuracies between the model before and after fine-tuning
CANDIDATES = "candidates"
CHOICE = "choice.json"  # of settings, by held-out pictures
BAD_SENTENCES = "bad_sentences.jsonl"


def bad_examples(process_index: int, process_count: int) -> str:
    """The list of what one process could not use; only of several processes it has a number."""
    return "bad_examples.jsonl" if process_count == 1 else f"bad_examples_{process_index}.jsonl"
