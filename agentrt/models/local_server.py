"""Serves a GGUF file on the loopback interface, in a process of its own that lives no longer than its parent.

    python -m agentrt.models.local_server --weights FILE --parent PID

It is llama.cpp's own server, which speaks `/v1/chat/completions` and `/v1/messages`. It has its own process
since loading a model holds the interpreter's lock for half a second. The parent starts it with pipes at
stdin and stdout and reads one line of JSON: `{"url": "http://127.0.0.1:PORT"}` as soon as requests are
answered, or `{"error": MESSAGE}`, with exit status 1. It holds on to its end of stdin and closes it, or just
dies, to end the server.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from typing import Any, BinaryIO, NoReturn

# Plain ChatML: the template in SmolLM2's file adds a system message of its own, which ruins the answers.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARENT_CHECK_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    # Ctrl-C in a terminal goes to the whole process group, and it is the parent that says what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = _options()
    answer = os.fdopen(os.dup(1), "w")
    noise = _silence()
    _die_with(options.parent)
    try:
        _check(options.weights)
        server = serve(options.weights, options.name, options.context, options.slots, options.threads)
    except Exception as error:
        noise.seek(0)
        said = noise.read().decode(errors="replace").strip().splitlines()
        _exit_with(answer, " | ".join([f"{type(error).__name__}: {error}", *said[-3:]]))
    print(json.dumps({"url": server.listening_address}), file=answer, flush=True)
    # From here on nobody would read what llama.cpp has to say, and the file would only grow.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    noise.close()
    # Where the kernel does not tell, and if the parent's other children still hold the pipe at our stdin.
    while os.getppid() == options.parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(0)


def _check(weights: str) -> None:
    """llama.cpp's own error does not tell what is wrong with a file."""
    with open(weights, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{weights} is not a GGUF file")


def serve(weights: str, name: str, context: int, slots: int, threads: int) -> Any:
    """Loads the weights and returns the running `xllamacpp.Server`; each slot has `context` tokens."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # it has no types

    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.model_alias = {name}
    params.chat_template = CHAT_TEMPLATE
    params.use_jinja = True
    # A set seed and no temperature, if a request asks for none: the same answer each time.
    params.sampling.seed = 42
    params.sampling.temp = 0.0
    params.n_ctx = context * slots
    params.n_parallel = slots
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    # No page that the user's browser shows gets at it, and no endpoint shows other requests' prompts.
    params.cors_origins = ""
    params.ui = False
    params.endpoint_slots = False
    # Prompts of the past are kept in memory: 8 GB by default.
    params.cache_ram_mib = 0
    params.warmup = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m agentrt.models.local_server")
    parser.add_argument("--weights", required=True, help="the GGUF file")
    parser.add_argument("--parent", required=True, type=int, help="process id: the server ends when it does")
    parser.add_argument("--name", default="smollm2", help="the model's name in requests")
    parser.add_argument("--context", default=4096, type=int, help="tokens that one request may have")
    parser.add_argument("--slots", default=2, type=int, help="requests at once; more have to wait")
    parser.add_argument("--threads", default=1, type=int, help="threads that compute")
    return parser.parse_args()


def _silence() -> BinaryIO:
    """Turns stdout and stderr, also of native code, to a file without a name, and returns it."""
    noise = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(noise.fileno(), 1)
    os.dup2(noise.fileno(), 2)
    return noise


def _die_with(parent: int) -> None:
    """Ends this process when `parent` ends, however that may happen."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it ended before the kernel knew of our wish
    # The kernel's signal comes when the starting *thread* ends, and only on Linux; the pipe works everywhere.
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()


def _exit_at_end_of_input() -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    # Not sys.exit: native threads are running, and there is nothing to clean up.
    os._exit(0)


def _exit_with(answer: Any, message: str) -> NoReturn:
    print(json.dumps({"error": message}), file=answer, flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
