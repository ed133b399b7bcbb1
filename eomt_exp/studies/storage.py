"""Where an Optuna study is kept, and which pruner judges its trials.

A journal file is the default: it needs no server, its lock works on network disks, and a process
that is killed while it writes costs nothing (Optuna, Akiba et al., KDD 2019; its ask and tell).
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from optuna.storages.journal import JournalFileSymlinkLock

VARIABLE = "EOMT_STORAGE"  # in the environment: a study's address with its password
FORMS = (
    "journal:///folder/study.log",
    "sqlite:////folder/study.db",
    "grpc://host:13000",
    "postgresql+psycopg://user:password@host/database",
    "mysql+pymysql://user:password@host/database",
)
# A writer holds the journal's lock for milliseconds; one killed meanwhile keeps others this long.
_GRACE_SECONDS = 10
_SECOND_TRY_SECONDS = 2.0
_BUSY_SECONDS = 60  # that SQLite waits for another writer
_SERVER_SECONDS = 20  # that a gRPC server has to answer

_PRUNERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("NopPruner", ()),
    "median": (
        "MedianPruner",
        ("n_startup_trials", "n_warmup_steps", "interval_steps", "n_min_trials"),
    ),
    "hyperband": (
        "HyperbandPruner",
        ("min_resource", "max_resource", "reduction_factor", "bootstrap_count"),
    ),
    "successive_halving": (
        "SuccessiveHalvingPruner",
        ("min_resource", "reduction_factor", "min_early_stopping_rate", "bootstrap_count"),
    ),
    "patient": ("PatientPruner", ("patience", "min_delta", "inner")),
}


def open_storage(url: str | None) -> BaseStorage:
    """The storage at an address, made if it is new; "" or None is memory, gone with the process.

    Raises ValueError for an unknown kind of address, a missing package, a server that is away.
    """
    from optuna.storages import InMemoryStorage

    kind, _, rest = (url or "").partition("://")
    if not url:
        return InMemoryStorage()
    if kind == "journal" and rest:
        return _journal(Path(rest))
    if kind == "sqlite" and rest.startswith("/"):
        return _sqlite(url, Path(rest[1:].partition("?")[0]))
    if kind == "grpc" and re.fullmatch(r"[^/]+:\d+/?", rest):
        return _grpc(rest.rstrip("/"))
    if kind.partition("+")[0] in ("postgresql", "mysql") and rest:
        return _server(url)
    allowed = ", ".join(FORMS)
    raise ValueError(
        f"No study can be kept at {shown(url)!r}. Type one of hydra.sweeper.storage=null "
        f"(a journal in the study's folder), {allowed}."
    )


def shown(url: str) -> str:
    """An address fit for a screen: its password is ***."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)


def kept_apart(url: str) -> str:
    """`shown(url)`; the whole address goes into this environment, which jobs inherit.

    What a job is told otherwise stands in files and in lists of processes.
    """
    if shown(url) != url:
        os.environ[VARIABLE] = url
    return shown(url)


def put_together(told: str) -> str:
    """The address that `kept_apart` left, in the process itself or in a job of it."""
    url = os.environ.get(VARIABLE, "")
    return url if url and shown(url) == told else told


def quiet_optuna() -> None:
    """No line per trial and no warnings about experimental features; real warnings stay."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def make_pruner(settings: Mapping[str, Any], max_epochs: int | None = None) -> BasePruner:
    """The pruner of {name: median, …}; `max_epochs` is Hyperband's largest resource if it has none.

    Options that are null keep Optuna's default. Raises ValueError with what is allowed.
    """
    import optuna

    quiet_optuna()  # one of them is called experimental
    name = str(settings.get("name"))
    if name not in _PRUNERS:
        raise ValueError(
            f"No pruner is called {name!r}; type hydra/sweeper/pruner=<one of "
            f"{', '.join(_PRUNERS)}>."
        )
    kind, allowed = _PRUNERS[name]
    given = {key: value for key, value in settings.items() if key != "name"}
    refuse_unknown(f"hydra.sweeper.pruner, {name}", given, allowed)
    options = {key: value for key, value in given.items() if value is not None}
    if name == "hyperband" and options.get("max_resource", "auto") == "auto" and max_epochs:
        options["max_resource"] = max_epochs
    if "n_warmup_steps" in options:  # Optuna counts steps from 0, we count epochs from 1
        options["n_warmup_steps"] = int(options["n_warmup_steps"]) + 1
    if name == "patient":
        inner = options.pop("inner", None)
        options["wrapped_pruner"] = make_pruner(inner, max_epochs) if inner else None
        options.setdefault("patience", 2)
    try:
        return getattr(optuna.pruners, kind)(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"hydra.sweeper.pruner, {name}: {error}") from error


def refuse_unknown(where: str, given: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """ValueError if `given` has an option that is not among the allowed ones."""
    unknown = sorted(set(map(str, given)) - set(allowed))
    if unknown:
        raise ValueError(
            f"{where}: no option is called {', '.join(unknown)}; allowed: "
            f"{', '.join(allowed) or 'none at all'}."
        )


class _MendingLock:
    """The journal's lock; who gets it first cuts off the half line that a killed writer left.

    Optuna would write on behind it, and no one could read the journal from then on.
    """

    def __init__(self, path: Path, lock: JournalFileSymlinkLock) -> None:
        self.path, self.lock = path, lock

    def acquire(self) -> bool:
        self.lock.acquire()
        try:
            self._mend()
        except BaseException:
            self.lock.release()
            raise
        return True

    def _mend(self) -> None:
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read(1) not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)

    def release(self) -> None:
        self.lock.release()


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    # Absolute: the lock is a link to the journal, and beside a relative one it would dangle; the
    # lock of a dead writer would then never be taken for dead.
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: Any = _MendingLock(path, JournalFileSymlinkLock(str(path), grace_period=_GRACE_SECONDS))
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _sqlite(url: str, path: Path) -> BaseStorage:
    from filelock import FileLock
    from optuna.storages import RDBStorage
    from sqlalchemy import event

    if str(path) in (".", ":memory:"):
        raise ValueError(f"{url!r} names no file; type sqlite:////folder/study.db.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that make the tables at once: one dies of alembic_version.
    with FileLock(f"{path}.lock"), _explained(url):
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}})
    storage.engine.dispose()  # connections from before the listeners
    # By default a reader becomes a writer half-way, and two of them take the same waiting trial.
    event.listen(storage.engine, "connect", _leave_transactions_to_us)
    event.listen(storage.engine, "begin", _begin_as_writer)
    return storage


def _leave_transactions_to_us(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _begin_as_writer(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _grpc(address: str) -> BaseStorage:
    from optuna.exceptions import ExperimentalWarning

    try:
        import google.protobuf  # noqa: F401
        import grpc  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f'grpc://{address} needs packages that are missing: pip install -e ".[grpc]"'
        ) from error
    from optuna.storages import GrpcStorageProxy

    host, _, port = address.rpartition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = GrpcStorageProxy(host=host, port=int(port))
    try:
        storage.wait_server_ready(timeout=_SERVER_SECONDS)
    except Exception as error:
        raise ValueError(
            f"No storage server answers at grpc://{address}. Start one there: python -c "
            '"from optuna.storages import run_grpc_proxy_server as run; from '
            "eomt_exp.studies.storage import open_storage; "
            f"run(open_storage('journal:///folder/study.log'), host='localhost', port={port})\" "
            "and reach it through an ssh tunnel: whoever can speak to it can change the study, "
            "and run code in a cma_es controller."
        ) from error
    return storage


def _server(url: str) -> BaseStorage:
    extra = "postgres" if url.startswith("postgresql") else "mysql"
    try:
        return _tables_of(url)
    except ImportError as error:
        raise ValueError(
            f'{shown(url)} needs a driver that is missing: pip install -e ".[{extra}]" '
            f"(and name it: {FORMS[3] if extra == 'postgres' else FORMS[4]})"
        ) from error


def _tables_of(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import DBAPIError

    def opened() -> BaseStorage:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})

    with _explained(url):
        try:
            return opened()
        except DBAPIError:  # two first users make the tables at once, and one of them fails
            time.sleep(_SECOND_TRY_SECONDS)
            return opened()


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, ImportError):
        raise
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"{shown(url)} cannot keep a study: {first}") from error
