"""`vqbench ui`: MLflow's own server on the results, its prepared views, and a browser that shows them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vqbench.errors import UsageError, VQBenchError, unknown
from vqbench.machine.streams import LOG_ENCODING, say
from vqbench.tracking.pages import VIEWS, address_of, has_views
from vqbench.tracking.server import connect, database_file, is_remote, quiet_environment, tracking_uri
from vqbench.wording import masked, reason_of_library

START_SECONDS = 180.0
"""That MLflow's server may take to answer; on a quiet machine it takes less than ten."""
END_SECONDS = 10.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MOST = 5  # experiments whose addresses are printed


@dataclass(frozen=True)
class Shown:
    """An experiment and the addresses of its prepared views."""

    name: str
    views: Mapping[str, str]


def serve(runs: Path, port: int, name: str | None = None, browser: bool = True) -> None:
    """Show the results below `runs` in MLflow until Ctrl-C; of a remote server, print the addresses alone.

    `name` is the experiment to open, by default the newest; `port` 0 takes a free one. Raises UsageError where there
    is nothing to show, where the port is taken, and where no server answers.
    """
    uri = tracking_uri(runs)
    if is_remote(uri):
        _announce(uri, name, browser)
        return
    if (database := database_file(uri)) is not None and not database.is_file():
        raise UsageError(f"no results are tracked in {runs} yet", "`vqbench run` makes some, or give --runs DIR")
    port = free_port(port)
    address = f"http://127.0.0.1:{port}"
    with _running(uri, port) as (server, log):
        say(f"starting MLflow at {address} …")
        _wait_until_it_answers(server, log, address)
        _announce(address, name, browser)
        say("Ctrl-C ends it")
        server.wait()
        raise VQBenchError(f"MLflow's server ended by itself: {_last_line(log)}", "give the command again")


def free_port(port: int) -> int:
    """The port, or a free one for 0. Raises UsageError if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            why = "is taken" if isinstance(error, OSError) else "is none"
            raise UsageError(f"port {port} {why}", "give another: --port N; --port 0 takes a free one") from None
        return int(probe.getsockname()[1])


@contextmanager
def _running(uri: str, port: int) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """MLflow's server and its log; the server and all its processes are gone afterwards, whatever happens."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    env = {**os.environ, **quiet_environment(), **LOG_ENCODING}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # a process less
    env["MLFLOW_BACKEND_STORE_URI"] = uri  # everybody on this machine can read a command line
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        before = {number: signal.signal(number, _interrupt) for number in _ENDING}
        try:
            yield server, log
        except KeyboardInterrupt:
            return  # the way to end it
        finally:
            _end(server)
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server's process group: politely, then not. Nothing interrupts that, or it would live on."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(END_SECONDS)
            if number == signal.SIGTERM:  # the workers end after it, and are its group
                time.sleep(0.5)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def _wait_until_it_answers(server: subprocess.Popen[bytes], log: IO[bytes], address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    past_proxies = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise VQBenchError(f"MLflow's server did not start: {_last_line(log)}", "`mlflow doctor` may know why")
        try:
            past_proxies.open(f"{address}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise VQBenchError(f"MLflow's server does not answer after {START_SECONDS:.0f} s", "give the command again")


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _announce(address: str, name: str | None, browser: bool) -> None:
    """Print where the experiments are, and open the first."""
    shown, place = experiments_at(address, name), masked(address)
    for experiment in shown[:_MOST]:
        lines = [f"  {view:<9} {masked(view_address)}" for view, view_address in experiment.views.items()]
        print("\n".join([experiment.name, *lines]), flush=True)
    if len(shown) > _MOST:
        print(f"{len(shown) - _MOST} more: {place}/#/experiments", flush=True)
    if not shown:
        print(f"no experiment of vqbench: {place}", flush=True)
    if browser and sys.stdout.isatty():
        _open(shown[0].views["methods"] if shown else address)


def experiments_at(address: str, name: str | None = None) -> list[Shown]:
    """The experiments of vqbench on a server, the one that was changed last first; `name` alone, if it is given.

    Raises UsageError for a name that is not there, and if nothing answers.
    """
    try:
        found = connect(address).search_experiments(order_by=["last_update_time DESC"])
    except Exception as error:
        why = reason_of_library(error, address)
        raise UsageError(f"no tracking server at {masked(address)}: {why}", "look at MLFLOW_TRACKING_URI") from None
    found = [each for each in found if has_views(each.tags)]
    if name is not None and name not in {each.name for each in found}:
        raise unknown("experiment", name, [each.name for each in found], f"all of them: {masked(address)}")
    here = {each.name: f"{address.rstrip('/')}/#/experiments/{each.experiment_id}" for each in found}
    asked = here if name is None else {name: here[name]}
    return [Shown(each, {view: address_of(place, view) for view in VIEWS}) for each, place in asked.items()]


def _open(address: str) -> None:
    """Open a browser with windows, if there is one; one that would take the terminal is none."""
    import webbrowser

    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & set(os.environ):
        return
    try:
        webbrowser.open(address)
    except webbrowser.Error:
        return
