"""Assemble a Flink standalone cluster from the pip package: lib folder, configuration, commands.

Processes are started with plain `java`, not with Flink's scripts: a script starts up to two helper
JVMs to compute memory sizes, which on two cores costs more than the rest of the start.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from connectors.local.flink_lib import assemble_lib, bridge_jar, pyflink_folder
from connectors.local.processes import of_this_host
from connectors.settings import Settings

__all__ = [
    "FlinkFiles",
    "client_environment",
    "cluster_configuration",
    "job_manager_command",
    "memory_options",
    "prepare_files",
    "task_manager_command",
    "zookeeper_command",
]

_OPENS: Final = (
    "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    *(
        f"--add-exports=jdk.compiler/com.sun.tools.javac.{package}=ALL-UNNAMED"
        for package in ("api", "file", "parser", "tree", "util")
    ),
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            "java.lang",
            "java.net",
            "java.io",
            "java.nio",
            "sun.nio.ch",
            "java.lang.reflect",
            "java.text",
            "java.time",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "java.util.concurrent.locks",
        )
    ),
)
"""Flink on Java 17 reaches into these packages, as its own default config.yaml lists them."""

WARM: Final = "jobs.runtime.warm"
"""What a TaskManager's Python imports as soon as the process runs."""

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made below it

_LOG4J: Final = """\
monitorInterval = 30
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = file
appender.file.name = file
appender.file.type = RollingFile
appender.file.fileName = ${sys:log.file}
appender.file.filePattern = ${sys:log.file}.%i
appender.file.append = true
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %-5p %c{1.} %x - %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
logger.pekko.name = org.apache.pekko
logger.pekko.level = WARN
logger.kafka.name = org.apache.flink.kafka.shaded.org.apache.kafka
logger.kafka.level = WARN
logger.zookeeper.name = org.apache.flink.shaded.zookeeper3
logger.zookeeper.level = WARN
logger.alignment.name = org.apache.flink.runtime.source.coordinator.SourceCoordinator
logger.alignment.level = WARN
logger.netty.name = org.jboss.netty.channel.DefaultChannelPipeline
logger.netty.level = OFF
"""

_LOG4J_CLIENT: Final = """\
status = error
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = Console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %-5p %c{1.} - %m%n
"""


@dataclass(frozen=True, slots=True)
class FlinkFiles:
    """Where the cluster's folders are: class path, configuration, state, temporary files."""

    home: Path

    @property
    def lib(self) -> Path:
        """Return the folder of links to every jar of the class path."""
        return self.home / "flink" / "lib"

    @property
    def conf(self) -> Path:
        """Return the folder of config.yaml and the logging files."""
        return self.home / "flink" / "conf"

    @property
    def state(self) -> Path:
        """Return the folder below which checkpoints, savepoints and HA data lie."""
        return self.home / "flink" / "state"

    @property
    def temporary(self) -> Path:
        """Return the folder of RocksDB's working files and of Flink's own temporary files."""
        return self.home / "flink" / "tmp"

    @property
    def memory(self) -> Path:
        """Return the folder of RocksDB's working files when they lie in memory."""
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return _MEMORY / f"riskstream-{digest}"

    @property
    def crashes(self) -> Path:
        """Return this host's folder of crash reports, and of the batches that were in hand then."""
        return of_this_host(self.home / "crashes")

    @property
    def logs(self) -> Path:
        """Return the folder of the logs of every part."""
        return self.home / "logs"


def prepare_files(files: FlinkFiles, configuration: Mapping[str, str]) -> None:
    """Link the class path together and write the configuration; repeating it is harmless.

    Raises:
        ConfigurationError: when a jar is missing.
    """
    for folder in (files.conf, files.state, files.temporary, files.logs, files.crashes):
        folder.mkdir(parents=True, exist_ok=True)
    assemble_lib(files.lib)
    lines = [f"{key}: {_yaml(value)}\n" for key, value in sorted(configuration.items())]
    (files.conf / "config.yaml").write_text("".join(lines), encoding="utf-8")
    for name, text in (
        ("log4j.properties", _LOG4J),
        ("log4j-console.properties", _LOG4J),
        ("log4j-cli.properties", _LOG4J_CLIENT),
        ("log4j-session.properties", _LOG4J_CLIENT),
    ):
        (files.conf / name).write_text(text, encoding="utf-8")


def _yaml(value: str) -> str:
    quoted = value.replace("'", "''")
    return f"'{quoted}'"


def cluster_configuration(
    settings: Settings,
    files: FlinkFiles,
    *,
    rest_port: int,
    rpc_port: int,
    zookeeper: str | None = None,
) -> dict[str, str]:
    """Return Flink's options for the local cluster; everything binds to loopback.

    Args:
        settings: parallelism, checkpoint interval and directory, slots.
        files: where state and temporary files go.
        rest_port: REST and web page.
        rpc_port: JobManager RPC; fixed, so that TaskManagers find a restarted JobManager.
        zookeeper: `host:port` turns high availability on.
    """
    flink = settings.flink
    checkpoints = flink.checkpoint_directory or f"file://{files.state}/checkpoints"
    options = {
        "jobmanager.rpc.address": "127.0.0.1",
        "jobmanager.rpc.port": str(rpc_port),
        "jobmanager.bind-host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "taskmanager.host": "127.0.0.1",
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        "rest.port": str(rest_port),
        "rest.flamegraph.enabled": "true",
        "web.submit.enable": "true",
        "web.cancel.enable": "true",
        "io.tmp.dirs": str(files.temporary),
        # As many slots in one TaskManager as the whole job needs halves: when one dies, its half
        # restarts at once on the survivor instead of waiting for the replacement to register.
        "taskmanager.numberOfTaskSlots": str(settings.local.slots_per_task_manager),
        # One task a stage: all in one TaskManager, where batches pass from stage to stage in
        # memory, and the other is its stand-by. With more tasks each interpreter lock counts.
        "taskmanager.load-balance.mode": "MIN_RESOURCES" if flink.parallelism == 1 else "SLOTS",
        "parallelism.default": str(flink.parallelism),
        "pipeline.max-parallelism": str(flink.max_parallelism),
        "state.backend.type": "rocksdb",
        "execution.checkpointing.incremental": "true",
        "execution.checkpointing.dir": checkpoints,
        "execution.checkpointing.savepoint-dir": f"file://{files.state}/savepoints",
        "execution.checkpointing.interval": f"{flink.checkpoint_interval_ms} ms",
        "execution.checkpointing.timeout": f"{flink.checkpoint_timeout_ms} ms",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.num-retained": "2",
        # A failure never gives the job up: it waits longer each time, up to ten seconds, and goes
        # on. A job that ran for ten seconds begins with the shortest wait again: with a minute,
        # failures half a minute apart added up to half a minute of waiting each.
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "200 ms",
        "restart-strategy.exponential-delay.max-backoff": "10 s",
        "restart-strategy.exponential-delay.backoff-multiplier": "2.0",
        "restart-strategy.exponential-delay.reset-backoff-threshold": "10 s",
        # Silence is a pause of the garbage collector or of a busy laptop until it lasts for eight
        # beats. A process that is gone refuses its beats, and two refusals are enough.
        "heartbeat.interval": "1000",
        "heartbeat.timeout": "8000",
        "cluster.registration.initial-timeout": "100 ms",
        "cluster.registration.max-timeout": "1 s",
        "slot.request.timeout": "120 s",
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "env.java.opts.all": " ".join(_OPENS),
        # Frames a second: the job graph's own metrics stay fresh for `riskstream top`.
        "metrics.fetcher.update-interval": "1000",
    }
    if settings.local.flink_metrics:
        options |= {
            "metrics.reporters": "prometheus",
            "metrics.reporter.prometheus.factory.class": (
                "org.apache.flink.metrics.prometheus.PrometheusReporterFactory"
            ),
        }
    if settings.local.rocksdb_in_memory and _MEMORY.is_dir():
        # A checkpoint begins with a flush that RocksDB syncs several times, and the task stands
        # still until it is done: 20 to 85 ms on a disk. The checkpoint itself lies in `home`.
        options["state.backend.rocksdb.localdir"] = str(files.memory)
    if zookeeper is not None:
        options |= {
            "high-availability.type": "zookeeper",
            "high-availability.zookeeper.quorum": zookeeper,
            "high-availability.zookeeper.path.root": "/riskstream",
            "high-availability.storageDir": f"file://{files.state}/ha",
            # A killed JobManager leads until its session ends: this is the floor of its recovery.
            # Shorter, and a machine that stands still for a moment changes its leader.
            "high-availability.zookeeper.client.session-timeout": "5000",
            "high-availability.zookeeper.client.connection-timeout": "3000",
            "high-availability.jobmanager.port": str(rpc_port),
        }
    return options


def memory_options(process_mb: int, slots: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """Split a TaskManager's memory; return the JVM's flags and the options Flink checks them by.

    Managed memory is RocksDB's. Python's own memory (windows, models) lies outside: in thread mode
    it belongs to this process all the same, so leave the machine room for it.
    """
    metaspace = 160 if process_mb < 1536 else 256
    overhead = max(96, process_mb // 10)
    total = process_mb - metaspace - overhead
    network = max(64, total // 12)
    framework_off_heap = 64 if process_mb < 1536 else 128
    task_off_heap = 0 if process_mb < 1536 else 64
    managed = total * 3 // 10 if process_mb >= 1536 else total // 5
    heap = total - network - framework_off_heap - task_off_heap - managed
    framework_heap = min(128, heap // 2)
    jvm = (
        f"-Xms{heap}m",
        f"-Xmx{heap}m",
        f"-XX:MaxDirectMemorySize={framework_off_heap + task_off_heap + network}m",
        f"-XX:MaxMetaspaceSize={metaspace}m",
        # Until then nobody stops the process for a full collection; by default it is 21 MB, which
        # a TaskManager passes two or three times while it and its first job start.
        f"-XX:MetaspaceSize={metaspace // 2}m",
    )
    options = {
        "taskmanager.cpu.cores": f"{float(slots)}",
        "taskmanager.memory.framework.heap.size": f"{framework_heap}m",
        "taskmanager.memory.task.heap.size": f"{heap - framework_heap}m",
        "taskmanager.memory.framework.off-heap.size": f"{framework_off_heap}m",
        "taskmanager.memory.task.off-heap.size": f"{task_off_heap}m",
        "taskmanager.memory.network.min": f"{network}m",
        "taskmanager.memory.network.max": f"{network}m",
        "taskmanager.memory.managed.size": f"{managed}m",
        "taskmanager.memory.jvm-metaspace.size": f"{metaspace}m",
        "taskmanager.memory.jvm-overhead.min": f"{overhead}m",
        "taskmanager.memory.jvm-overhead.max": f"{overhead}m",
        "external-resources": "none",
    }
    return jvm, options


def job_manager_command(
    java: str, files: FlinkFiles, memory_mb: int, metrics_port: int | None
) -> tuple[str, ...]:
    """Return the command that runs the JobManager in the foreground."""
    # It coordinates and computes nothing: the quick compiler and the small collector start faster.
    jvm = (
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        f"-Xms{memory_mb // 2}m",
        f"-Xmx{memory_mb * 3 // 4}m",
        "-XX:MaxMetaspaceSize=256m",
        "-XX:MetaspaceSize=128m",
    )
    return _command(
        java,
        files,
        "jobmanager",
        "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
        jvm,
        _metrics(metrics_port),
    )


def task_manager_command(
    java: str,
    files: FlinkFiles,
    name: str,
    memory_mb: int,
    slots: int,
    metrics_port: int | None,
    *,
    warm: bool,
) -> tuple[str, ...]:
    """Return the command that runs the TaskManager `name` in the foreground.

    Its resource id is its name: the JobManager recognises a restarted one as the successor and
    drops the dead one at once instead of after the heartbeat timeout. One that is `warm` loads
    Python before it has a task that needs it: a job that fails over to it does not wait for that.
    """
    jvm, options = memory_options(memory_mb, slots)
    # The JVM only moves batches: with one compiler a job is at speed after seconds, not half a
    # minute. Little of its heap lives on, so that the serial collector pauses for milliseconds; G1
    # marked beside the job on the same cores and took batches of megabytes for objects that are too
    # large to move (docs/decisions/0007-fewer-instructions.md).
    jvm = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *jvm)
    if warm:
        jvm = (*jvm, f"-javaagent:{bridge_jar()}={sys.executable}:{WARM}")
    options |= {"taskmanager.resource-id": name, **_metrics(metrics_port)}
    return _command(
        java,
        files,
        name,
        "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
        jvm,
        options,
    )


def _metrics(port: int | None) -> dict[str, str]:
    return {} if port is None else {"metrics.reporter.prometheus.port": str(port)}


def zookeeper_command(java: str, files: FlinkFiles, port: int, data: Path) -> tuple[str, ...]:
    """Return the command that runs the ZooKeeper server inside flink-dist; writes its zoo.cfg."""
    data.mkdir(parents=True, exist_ok=True)
    files.conf.mkdir(parents=True, exist_ok=True)
    (files.conf / "zoo.cfg").write_text(
        f"tickTime=1000\ninitLimit=10\nsyncLimit=5\ndataDir={data}\nclientPort={port}\n"
        "clientPortAddress=127.0.0.1\nadmin.enableServer=false\nmaxClientCnxns=100\n"
        "autopurge.snapRetainCount=3\nautopurge.purgeInterval=1\n",
        encoding="utf-8",
    )
    return (
        java,
        "-Xmx128m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        *_logging(files, "zookeeper"),
        "-cp",
        _class_path(files),
        "org.apache.flink.runtime.zookeeper.FlinkZooKeeperQuorumPeer",
        "--zkConfigFile",
        str(files.conf / "zoo.cfg"),
        "--peerId",
        "1",
    )


def _command(
    java: str,
    files: FlinkFiles,
    name: str,
    main: str,
    jvm: Sequence[str],
    options: Mapping[str, str],
) -> tuple[str, ...]:
    dynamic = [word for key, value in options.items() for word in ("-D", f"{key}={value}")]
    return (
        java,
        *jvm,
        *_OPENS,
        "-XX:+IgnoreUnrecognizedVMOptions",
        # Beside the marks of the batches in hand: what a restarted task learns a crash from.
        f"-XX:ErrorFile={files.crashes}/hs_err_pid%p.log",
        f"-Djava.io.tmpdir={files.temporary}",
        *_logging(files, name),
        "-cp",
        _class_path(files),
        main,
        "--configDir",
        str(files.conf),
        *dynamic,
    )


def _logging(files: FlinkFiles, name: str) -> tuple[str, ...]:
    configuration = files.conf / "log4j-console.properties"
    return (
        f"-Dlog.file={files.logs / name}.log",
        f"-Dlog4j.configuration=file:{configuration}",
        f"-Dlog4j.configurationFile=file:{configuration}",
    )


def _class_path(files: FlinkFiles) -> str:
    # flink-dist goes last, as in Flink's scripts: its log4j bridge must not win over lib's.
    jars = sorted(files.lib.glob("*.jar"), key=lambda jar: ("flink-dist" in jar.name, jar.name))
    return ":".join(str(jar) for jar in jars)


def client_environment(files: FlinkFiles, root: Path) -> dict[str, str]:
    """Return what Flink's own processes and `flink run` need in their environment.

    `PYTHONPATH` is what Python inside a TaskManager sees: thread mode starts an interpreter that
    knows nothing of the virtual environment and reads no `.pth` files.
    """
    package = pyflink_folder()
    return {
        "FLINK_CONF_DIR": str(files.conf),
        "FLINK_LIB_DIR": str(files.lib),
        "FLINK_LOG_DIR": str(files.logs),
        "FLINK_PID_DIR": str(files.home / "run"),
        "FLINK_PLUGINS_DIR": str(package / "plugins"),
        "FLINK_OPT_DIR": str(package / "opt"),
        "PYTHONPATH": f"{package.parent}:{root}",
        # NumPy, ONNX and OpenMP would each start a thread per core in every TaskManager.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # What a batch frees the next one takes again. Left to itself glibc returns it, and each
        # batch pays for its pages anew, half of the time of the thread that sends rows.
        "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "MALLOC_TOP_PAD_": str(4 << 20),
    }
