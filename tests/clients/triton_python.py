"""Ask the appliance through NVIDIA's own client: `triton_python.py HOST:PORT MODEL TEXT...`.

Prints one JSON object of what came back; any surprise ends it with a traceback.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def main(address: str, model: str, texts: list[str]) -> dict[str, object]:
    """Use every call of the protocol."""
    client = InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert client.is_model_ready(model, "2")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata().name == "appliance"
    metadata = client.get_model_metadata(model, as_json=True)

    def infer(**parameters: object) -> tuple[list[str], list[str]]:
        tensor = InferInput("text_input", [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
        result = client.infer(
            model,
            [tensor],
            outputs=[InferRequestedOutput("text_output"), InferRequestedOutput("finish_reason")],
            request_id="mine",
            client_timeout=60,
            timeout=60_000_000,
            parameters=parameters,
        )
        assert result.get_response().id == "mine"
        found = (result.as_numpy(name).tolist() for name in ("text_output", "finish_reason"))
        answers, reasons = ([one.decode() for one in column] for column in found)
        return answers, reasons

    answers, reasons = infer(temperature="0", max_tokens=24)
    refusals = []
    for wrong in ({"temperature": 99.0}, {"max_token": 3}, {"stream": True}):
        try:
            infer(**wrong)
        except InferenceServerException as error:
            refusals.append(f"{error.status()}: {error.message()}")
    return {"metadata": metadata, "answers": answers, "reasons": reasons, "refusals": refusals}


if __name__ == "__main__":
    json.dump(main(sys.argv[1], sys.argv[2], sys.argv[3:]), sys.stdout)
