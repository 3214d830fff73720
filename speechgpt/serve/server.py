"""The `speechgpt-server` command: a model behind OpenAI's API, and a page in the browser to talk with it.

    speechgpt-server --model runs/toy/model                   # then open http://127.0.0.1:8010
    curl --data-binary @q.wav http://127.0.0.1:8010/answer    # lines of JSON, as the answer comes
    curl --data 'the red tiger jumps' http://127.0.0.1:8010/say > a.wav

OpenAI's API is below /v1, so that `OpenAI(base_url="http://127.0.0.1:8010/v1", api_key="none")` works: GET /v1/models,
POST /v1/audio/transcriptions, /v1/audio/speech, /v1/chat/completions, WebSocket /v1/realtime. docs/serving.md says what
of it is supported. GET /health and GET /metrics (Prometheus) are for those who run the server.

Simple routes, for curl:

| request | body | reply |
|---|---|---|
| GET / | | the page |
| GET /model | | {"name", "capabilities", "sample_rate"} |
| POST /answer | an audio file | a line of JSON for each piece of the answer |
| POST /transcribe | an audio file | {"text"} |
| POST /chat | a question, as UTF-8 | {"text"} |
| POST /say | a text, as UTF-8 | a wav |

A piece of an answer has what was gained: "transcript", "text", and "wav", 16-bit little-endian samples at the model's
rate in base64; the last piece also has "finished" and "understood".

Errors are {"error": reason}, below /v1 {"error": {"message", "type", "param", "code"}}: status 400 for bad input, 401
for a wrong key, 403 for another site's page, 404 for a path that does not exist or that the model does not support,
405 for another method, 408 for a request that does not come, 411 for one without a length, 413 for one that is too
long, 429 with Retry-After if too many wait, 500 for an error of the server, 503 if it is stopping. An error in the
middle of an answer is its last line. Sampling is set by the command's options; `?candidates=1` on /answer streams the
speech without self-verification.
"""

from __future__ import annotations

import os

from speechgpt.sampling import Sampling
from units.runtime.command import check_range, command

KEY_VARIABLE = "SPEECHGPT_API_KEY"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


@command("speechgpt-server", positional=False)
def main(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8010,
    api_key: str = "",
    origins: tuple[str, ...] = (),
    rows: int = 16,
    sound_process: bool | None = None,
    waiting: int = 64,
    device: str | None = None,
    dtype: str | None = None,
    llm: str | None = None,
    sampling: Sampling = Sampling(),
) -> None:
    """Serve a model until Ctrl-C.

    Args:
        model: model folder, such as runs/toy/model, or the id of a model on the hub
        host: the address to listen on: 127.0.0.1 is reached from this machine alone, 0.0.0.0 from the whole network,
            which needs a key
        port: 0 takes a free one
        api_key: what clients must send as "Authorization: Bearer KEY"; also read from SPEECHGPT_API_KEY, where other
            users of this machine cannot see it
        origins: other sites whose pages may use the server, such as '[https://example.org]'
        rows: answers that are made at once, as one batch
        sound_process: encode and make sound in a process of its own, which takes one core and some 0.5 GB of memory; by
            default where the model runs on a CPU of several cores and more than one row
        waiting: requests that may wait for these; further ones are refused with status 429
        device: cpu or cuda; a GPU if there is one, when not given
        dtype: of the model's weights: float32, bfloat16 or float16; as they are stored if not given
        llm: URL of an inference engine that runs the language model, such as http://127.0.0.1:8000/v1 of vLLM or
            SGLang; its key, if it needs one, is read from SPEECHGPT_LLM_KEY
        sampling: how tokens are drawn
    """
    check_range("port", port, 0, 65535)
    check_range("rows", rows, 1)
    check_range("waiting", waiting, 0)
    key = api_key or os.environ.get(KEY_VARIABLE, "")
    if not key and host not in LOCAL_HOSTS:
        raise ValueError(
            f"--host {host} is reached from other machines, so clients need a key: give --api_key or {KEY_VARIABLE}"
        )
    from speechgpt.generation.sound_process import part_sound
    from speechgpt.open_model import open_model

    try:
        from speechgpt.serve.application import Server, Serving
    except ImportError as error:
        raise ImportError(f"the server needs its libraries ({error}): pip install -e '.[serve]'") from error

    opened = open_model(model, device, dtype, llm)
    getattr(opened, "preload", lambda: None)()  # a missing or foreign part fails now, not at the first request
    able = ", ".join(sorted(opened.capabilities)) or "nothing"
    part_sound(opened, rows, sound_process)
    shown = f"[{host}]" if ":" in host else host
    server = Server(opened, sampling, Serving(host, port, key, tuple(origins), rows, waiting))
    print(f"{opened.name}, supports {able}: http://{shown}:{server.address[1]}", flush=True)
    server.run_until_stopped()


if __name__ == "__main__":
    main.cli()
