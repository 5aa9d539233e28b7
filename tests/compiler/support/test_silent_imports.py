"""What edgec does with a model stays here: no process that it starts looks up or calls a host."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgec.compiler.codegen.link import link_shared
from edgec.targets import load_target

# Loaded before everything else, it writes down every host that is looked up or called.
WATCH = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char* what, const char* host) {
  char line[512];
  int length = snprintf(line, sizeof line, "%s %s\n", what, host ? host : "");
  int file = open(getenv("WATCHED_CALLS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (file < 0 || write(file, line, (size_t)length) != length) abort();
  close(file);
}

static void note_address(const char* what, const struct sockaddr* address) {
  char text[64] = "";
  if (!address) return;
  if (address->sa_family == AF_INET)
    inet_ntop(AF_INET, &((const struct sockaddr_in*)address)->sin_addr, text, sizeof text);
  else if (address->sa_family == AF_INET6)
    inet_ntop(AF_INET6, &((const struct sockaddr_in6*)address)->sin6_addr, text, sizeof text);
  else return;
  note(what, text);
}

int getaddrinfo(const char* host, const char* service, const struct addrinfo* hints,
                struct addrinfo** found) {
  note("getaddrinfo", host);
  __typeof__(getaddrinfo)* real = dlsym(RTLD_NEXT, "getaddrinfo");
  return real(host, service, hints, found);
}

int connect(int socket, const struct sockaddr* address, socklen_t size) {
  note_address("connect", address);
  __typeof__(connect)* real = dlsym(RTLD_NEXT, "connect");
  return real(socket, address, size);
}

ssize_t sendto(int socket, const void* data, size_t bytes, int flags,
               const struct sockaddr* address, socklen_t size) {
  note_address("sendto", address);
  __typeof__(sendto)* real = dlsym(RTLD_NEXT, "sendto");
  return real(socket, data, bytes, flags, address, size);
}
"""

# A command of edgec's, and then time for what it left running.
COMMAND = """
import sys, time
from edgec.compiler.cli.main import main
status = main(sys.argv[2:])
time.sleep(float(sys.argv[1]))
sys.exit(status)
"""

LOOK_UP = "import socket; socket.getaddrinfo('localhost', 80)"

# What anybody gets who imports it and switches events off afterwards.
PLAIN = """
import sys, time
import onnxruntime
onnxruntime.disable_telemetry_events()
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
time.sleep(60)
"""


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(WATCH)
    link_shared([folder / "watch.c"], folder / "watch.so", load_target("native"), checked=False)
    return folder / "watch.so"


def watched(watcher: Path, calls: Path) -> dict[str, str]:
    """An environment without what switches events off by itself."""
    hidden = ("CI", "ORT_DISABLE_TELEMETRY", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "LD_PRELOAD": str(watcher), "WATCHED_CALLS": str(calls)}


def calls_of(watcher: Path, folder: Path, *arguments: str) -> list[str]:
    """Hosts that `python -c` and all that it starts look up or call."""
    calls = folder / "calls"
    command = [sys.executable, "-c", *arguments]
    environment = watched(watcher, calls)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return calls.read_text().splitlines() if calls.exists() else []


def test_a_look_up_is_seen(watcher: Path, tmp_path: Path) -> None:
    """The negative control."""
    assert "getaddrinfo localhost" in calls_of(watcher, tmp_path, LOOK_UP)


@pytest.fixture(scope="module")
def seconds(digits: Path, watcher: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Time after which a plain import of ONNX Runtime has told somebody; 0 if it does not."""
    calls = tmp_path_factory.mktemp("plain") / "calls"
    command = [sys.executable, "-c", PLAIN, str(digits)]
    start = time.monotonic()
    with subprocess.Popen(command, env=watched(watcher, calls)) as process:
        while process.poll() is None and not calls.exists():
            time.sleep(0.1)
        process.kill()
    if not calls.exists():
        return 0
    assert "events.data" in calls.read_text()
    return time.monotonic() - start


@pytest.mark.slow
def test_nothing_is_sent(digits: Path, watcher: Path, tmp_path: Path, seconds: float) -> None:
    """A compile, and a quantization with samples."""
    wait = str(2 * seconds + 5)
    np.savez(tmp_path / "samples.npz", image=np.random.default_rng(0).random((8, 1, 8, 8), "f4"))
    shape = ("--shape", "image=1,1,8,8", "-q")
    assert not calls_of(
        *(watcher, tmp_path, COMMAND, wait),
        *("compile", str(digits), *shape, "-o", "x.edgec"),
    )
    assert not calls_of(
        *(watcher, tmp_path, COMMAND, wait),
        *("compile", str(digits), *shape, "-o", "q.edgec"),
        *("--quantize", "int8", "--calibration", "samples.npz"),
    )


RIVALS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "mnn": "MNN", "ncnn": "ncnn"}


@pytest.mark.slow
@pytest.mark.parametrize("rival", RIVALS)
def test_no_rival_sends_anything(
    digits_bundle: Path, digits: Path, watcher: Path, tmp_path: Path, seconds: float, rival: str
) -> None:
    converter = rival != "ncnn" or shutil.which("pnnx")
    if importlib.util.find_spec(RIVALS[rival]) is None or not converter:
        pytest.skip(f"{rival} is not installed")
    assert not calls_of(
        *(watcher, tmp_path, COMMAND, str(2 * seconds + 5)),
        *("bench", str(digits_bundle), "--seconds", "0.1"),
        *("--against", rival, "--model", str(digits)),
    )
