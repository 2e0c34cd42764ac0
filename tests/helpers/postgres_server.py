"""A PostgreSQL server for the tests on loopback, with a temporary data folder."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

OWNER = "postgres"  # Debian's package makes this user; the server refuses to run as root
# A test's database need not survive a crash of the machine; commits survive a kill of the server's processes.
FAST = "-c fsync=off -c full_page_writes=off"


class Server:
    """A PostgreSQL server with its data in `folder`; `kill` stops it as a crash would."""

    def __init__(self, folder: Path, options: str = FAST) -> None:
        self.folder, self.options = folder, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._call("initdb", "--username", OWNER, "--auth", "trust", "--no-sync", "--encoding", "UTF8")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://{OWNER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        listen = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories= -c max_connections=100"
        self._call("pg_ctl", "start", "--wait", "--log", f"{self.folder}.log", "--options", f"{listen} {self.options}")

    def stop(self) -> None:
        self._call("pg_ctl", "stop", "--wait", "--mode", "fast")

    def kill(self) -> None:
        self._call("pg_ctl", "stop", "--wait", "--mode", "immediate")

    def _call(self, program: str, *arguments: str) -> None:
        command = [tool(program) or program, *arguments, "--pgdata", str(self.folder)]
        user = OWNER if os.getuid() == 0 else None
        done = subprocess.run(
            command, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout.decode()}")


def tool(name: str) -> str | None:
    """Return the path of a PostgreSQL program: on the path, or where Debian installs it."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda file: int(file.parts[4]))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


@contextmanager
def running() -> Iterator[Server]:
    """Run a server while the block runs."""
    with TemporaryDirectory(prefix="continual-postgres-") as folder:
        if os.getuid() == 0:
            shutil.chown(folder, OWNER)
        server = Server(Path(folder) / "data")
        server.start()
        try:
            yield server
        finally:
            server.stop()
