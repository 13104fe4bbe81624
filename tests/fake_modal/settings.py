"""What a test may turn."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Settings:
    """How the stand-in behaves. A test may change a running server's; seconds unless said otherwise."""

    retry_delay_scale: float = 0.001
    """Factor on the delays of a function's retry policy, so that 60 s becomes 60 ms. Of ``remote`` and ``map`` the
    client retries by itself, after at least 1 s whatever the policy says (modal.retries.RetryManager)."""
    timeout_scale: float = 1.0
    """Factor on a function's ``timeout``."""
    cancellation_grace: float = 10.0
    """From a cancellation or timeout until a container that ignores it is killed."""
    loss_limit: int = 8
    """Containers that may die with one attempt before the input fails; preempted ones do not count. 8 is
    MAX_INTERNAL_FAILURE_COUNT of modal._functions, which limits the same thing for calls through the input plane."""
    failed_start_limit: int = 3
    """Containers in a row that may die before they ask for input, until the function's waiting inputs fail. That there
    is a limit follows from a comment in modal._utils.function_utils._process_result; its value is not public."""
    containers_per_function: int = 2
    """Upper bound next to ``max_containers``, for the sake of the machine."""
    container_environment: dict[str, str] = field(default_factory=dict)
    """Variables of every container, for the sake of the machine, such as OMP_NUM_THREADS."""
    idle_seconds: float = 1.0
    """Upper bound on ``scaledown_window``."""
    client_timeout: float = 60.0
    """An ephemeral app without a heartbeat of its client for so long is stopped. Clients send one every 15 s unless
    MODAL_HEARTBEAT_INTERVAL says otherwise."""
    exit_commits: bool = True
    """Whether a container commits its volumes as it exits. SIGKILL prevents it all the same."""
    background_commit_interval: float | None = None
    """Between the commits that Modal makes on its own while a container runs; None makes none, which is the harshest
    case and the only one that does not depend on time."""
    commit_delay: float = 0.0
    """How long a commit takes. Until it is over nobody sees it, and a container killed meanwhile loses it."""
