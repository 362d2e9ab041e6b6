"""The two services that the sample Pensieve calls: embeddings (OpenAI's API), and the hook of an OCR plugin.

The embedding is made for tests: each word is a vector of 768 signs drawn from a hash of it, and a text is the
normalised sum of its words, so texts that share words are near each other, the same on every machine.

Runs until it is told to stop (SIGTERM). Needs numpy, which Pensieve's environment has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import numpy.typing as npt

DIMENSIONS = 768
WORD = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]")
"""A Latin word or number, or one Chinese character."""

Vector = npt.NDArray[np.float64]


@lru_cache(maxsize=65536)
def word_vector(word: str) -> Vector:
    """768 signs, +1 or -1, drawn from a hash of `word`."""
    bits = np.frombuffer(hashlib.shake_128(word.encode()).digest(DIMENSIONS // 8), dtype=np.uint8)
    return np.unpackbits(bits).astype(np.float64) * 2 - 1


def bag_of_words(texts: list[str]) -> list[list[float]]:
    """One vector of length 1 with 768 dimensions for each text; the empty word's for a text without words."""
    vectors = []
    for text in texts:
        total = sum((word_vector(word) for word in WORD.findall(text.lower())), np.zeros(DIMENSIONS))
        length = float(np.linalg.norm(total))
        vectors.append((total / length if length else word_vector("") / DIMENSIONS**0.5).tolist())
    return vectors


class Handler(BaseHTTPRequestHandler):
    """`GET /` (health), `POST /v1/embeddings`, `POST /ocr`."""

    def answer(self, status: int, body: dict[str, Any]) -> None:
        """Send `body` as JSON."""
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """Health."""
        self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        """Embed, or accept what Pensieve hands to an OCR plugin (the sample records carry their text)."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path == "/ocr":
            self.answer(200, {"entity": body["id"]})
        elif self.path == "/v1/embeddings":
            texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
            vectors = bag_of_words(texts)
            data = [
                {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
            ]
            self.answer(200, {"object": "list", "model": body.get("model"), "data": data})
        else:
            self.answer(404, {"error": f"no such path: {self.path}"})

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing for each request."""


def main() -> None:
    """Serve on the loopback interface."""
    parser = argparse.ArgumentParser(description="Embeddings and OCR hook for the sample Pensieve.")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
