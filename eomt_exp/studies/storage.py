"""Opens the storage that an Optuna study is kept in.

A journal file is the default: it needs no server, its lock works on network disks, and a process
that is killed while it writes costs nothing (Optuna, Akiba et al., KDD 2019).
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import make_url

from eomt_exp.contracts import UserError
from eomt_exp.jobs import STORAGE_ENV
from eomt_exp.paths import at_home
from eomt_exp.tracking.provenance import without_passwords

JOURNAL = "study.log"  # in the study's folder
FORMS = {  # an address of each kind
    "journal": "journal:///folder/study.log",
    "sqlite": "sqlite:////folder/study.db",
    "grpc": "grpc://host:13000",
    "postgresql": "postgresql+psycopg://user:password@host/database",
    "mysql": "mysql+pymysql://user:password@host/database",
}
_START_A_SERVER = (
    'no server answers. Start one there: python -c "from optuna.storages import '
    "run_grpc_proxy_server as run; from eomt_exp.studies.storage import open_storage; "
    "run(open_storage('journal:///folder/study.log'), host='localhost', port={port})\" and reach "
    "it through an ssh tunnel: whoever can speak to it can change the study, and run code in a "
    "cma_es controller."
)
# A writer holds the journal's lock for milliseconds; one killed meanwhile keeps others this long.
_GRACE_SECONDS = 10
_BUSY_SECONDS = 60  # that SQLite waits for another writer
_SERVER_SECONDS = 20  # that a gRPC server has to answer


def open_storage(url: str) -> BaseStorage:
    """Open the storage at an address, or make it, which is for one process at a time.

    Raises UserError for an unknown kind of address, a missing package, a server that is away.
    """
    quiet_optuna()
    kind, _, rest = url.partition("://")
    program = kind.partition("+")[0]
    try:
        if kind == "journal" and rest:
            # Absolute: the lock is a link to the journal, and beside a relative one it would
            # dangle; the lock of a dead writer would then never be taken for dead.
            path = Path(at_home(rest)).resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _JournalLock(str(path), grace_period=_GRACE_SECONDS)
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        if kind == "grpc" and (server := re.fullmatch(r"([^/]+):(\d+)/?", rest)):
            storage = GrpcStorageProxy(host=server[1], port=int(server[2]))
            storage.wait_server_ready(timeout=_SERVER_SECONDS)
            return storage
        if kind == "sqlite" and re.fullmatch(r"/(?!:memory:)[^?]+.*", rest):
            url = at_home(url)
            Path(str(make_url(url).database)).parent.mkdir(parents=True, exist_ok=True)
            # IMMEDIATE: a reader that becomes a writer half-way would not be let wait for another.
            settings = {"timeout": _BUSY_SECONDS, "isolation_level": "IMMEDIATE"}
            return RDBStorage(url, engine_kwargs={"connect_args": settings})
        if program in ("postgresql", "mysql") and rest:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        extra = {"postgresql": "postgres"}.get(program, program)
        raise UserError(
            f"{without_passwords(url)} needs a package that is missing: pip install -e "
            f'".[{extra}]" (and name it: {FORMS[program]})'
        ) from error
    except Exception as error:  # whatever gRPC and SQLAlchemy raise
        why = str(error).partition("\n")[0]
        if kind == "grpc":
            why = _START_A_SERVER.format(port=rest.strip("/").rpartition(":")[2])
        raise UserError(f"{without_passwords(url)} cannot keep a study: {why}") from error
    raise UserError(
        f"No study can be kept at {without_passwords(url)!r}. Type hydra.sweeper.storage=null (a "
        f"journal in the study's folder), or one of {', '.join(FORMS.values())}."
    )


def hide_password(url: str) -> str:
    """Return the address without its password; jobs find the whole one in their environment.

    Their overrides stand in files and in lists of processes.
    """
    os.environ[STORAGE_ENV] = url
    return without_passwords(url)


def quiet_optuna() -> None:
    """Silence the line per trial and the warnings of what is experimental; real warnings stay."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class _JournalLock(JournalFileSymlinkLock):
    """The journal's lock; who gets it first cuts off the half line that a killed writer left.

    Optuna would write on behind it, and no one could read the journal from then on.
    """

    def acquire(self) -> bool:
        super().acquire()
        try:
            with open(self._lock_target_file, "r+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                if file.read(1) not in (b"", b"\n"):
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        except BaseException:
            self.release()
            raise
        return True
