"""The app on Modal: an image, the volume, one function.

Layers of the image are ordered by how seldom they change; local files are mounted when a container starts, so that
editing them builds nothing.
"""

import importlib
import importlib.util
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra_plugins.nsm_modal.config import ImageConfig, LauncherError, ModalLauncherConfig, refuse_unless
from hydra_plugins.nsm_modal.task import TaskName
from hydra_plugins.nsm_modal.worker import PRELOAD, run

FUNCTION = "run"
OWN_PACKAGES = ("hydra-core", "omegaconf", "cloudpickle")
"""What the worker imports, in the versions of this side."""
CONSTRAINTS = "/constraints.txt"
"""In the image."""
NO_CODE = ("**/.venv/**", "**/.git/**", "**/__pycache__/**", "**/outputs/**", "**/multirun/**")


def build_app(
    settings: ModalLauncherConfig,
    *,
    name: str,
    task: TaskName | None,
    tags: dict[str, str],
    entry: Callable[..., Any] = run,
) -> tuple[Any, Any]:
    """A ``modal.App`` called ``name``, and its function, which calls ``entry``: for jobs the worker's ``run``."""
    import modal

    env = settings.image.env | {variable: os.environ[variable] for variable in settings.env_passthrough}
    if settings.keep_app and task is not None and task.module is not None:
        env[PRELOAD] = task.module
    gpus = [gpu for gpu in settings.gpus if gpu is not None]
    app = modal.App(name, tags=settings.tags | tags, include_source=False)
    function = app.function(
        name=FUNCTION,
        image=build_image(settings.image, task),
        env=dict(env),
        secrets=[modal.Secret.from_name(secret) for secret in settings.secrets],
        gpu=gpus[0] if len(gpus) == 1 else gpus or None,
        cpu=settings.cpu,
        memory=settings.memory,
        timeout=settings.timeout,
        retries=modal.Retries(
            max_retries=settings.retries.max_retries,
            backoff_coefficient=settings.retries.backoff,
            initial_delay=settings.retries.first_delay,
        ),
        volumes={settings.mount: modal.Volume.from_name(settings.volume)},
        max_containers=settings.max_containers,
        min_containers=settings.min_containers or None,
        region=settings.region,
        single_use_containers=True,  # Hydra and Lightning leave global state behind
        enable_memory_snapshot=settings.keep_app,
    )(entry)
    return app, function


def build_image(config: ImageConfig, task: TaskName | None) -> Any:
    """The ``modal.Image`` of the jobs."""
    import modal

    image = modal.Image.debian_slim(config.python_version or ".".join(platform.python_version_tuple()[:2]))
    if config.apt:
        image = image.apt_install(*config.apt)
    options = ""
    if config.constraints is not None:
        constraints = find(config.constraints, "image.constraints", task)
        image = image.add_local_file(constraints, CONSTRAINTS, copy=True)
        options = f"--constraint {CONSTRAINTS}"
    if config.pyproject is not None:
        pyproject = find(config.pyproject, "image.pyproject", task)
        image = image.pip_install_from_pyproject(str(pyproject), extra_options=options)
    if config.pyg_wheels is not None:
        image = image.uv_pip_install("torch-scatter", "torch-sparse", find_links=config.pyg_wheels)
    own = [f"{package}=={version(package)}" for package in OWN_PACKAGES]
    image = image.uv_pip_install(*own, *config.packages, extra_options=options)
    if config.env:
        image = image.env(dict(config.env))
    if config.builder is not None:
        image = _builder(config.builder)(image)
    image = image.add_local_dir(
        Path(__file__).parent, "/root/hydra_plugins/nsm_modal", ignore=~modal.FilePatternMatcher("**/*.py")
    )
    if packages := packages_to_ship(config, task):
        image = image.add_local_python_source(*packages)
    if task is not None and task.script is not None:
        beside = Path(task.script).parent
        image = image.add_local_dir(beside, "/root", ignore=~modal.FilePatternMatcher("*.py"))
    for here, there in config.local_dirs.items():
        folder = find(here, f"image.local_dirs.{here}", task)
        image = image.add_local_dir(folder, str(Path("/root", there)), ignore=list(NO_CODE))
    return image


def packages_to_ship(config: ImageConfig, task: TaskName | None) -> list[str]:
    """Names of the Python packages that are mounted: the task's own, and those that were asked for."""
    own = [task.package] if task is not None and task.package is not None else []
    return list(dict.fromkeys([*own, *config.local_packages]))


def sources(config: ImageConfig, task: TaskName | None) -> list[Path]:
    """Where the code of the jobs lies here: folders of packages, files of modules, all files beside a script.

    Raises:
        LauncherError: if a package that was asked for is not found.
    """
    found = sorted(Path(task.script).parent.glob("*.py")) if task is not None and task.script is not None else []
    for package in packages_to_ship(config, task):
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        refuse_unless(
            spec is not None, "image.local_packages", package, "no top-level package of that name is found here"
        )
        assert spec is not None
        found += [Path(folder) for folder in spec.submodule_search_locations or [str(spec.origin)]]
    return found


def find(path: str, key: str, task: TaskName | None) -> Path:
    """The file or folder that a setting names: as it stands, or else beside or above the task's code.

    Raises:
        LauncherError: if it is in neither place.
    """
    places = [Path.cwd()]
    for source in sources(ImageConfig(), task):
        places += source.parents
    for place in places:
        if (place / path).exists():
            return place / path
    raise LauncherError(
        f"hydra.launcher.{key}={path!r} cannot be used: there is no such file in {places[0]} or above the task's code"
    )


def _builder(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LauncherError(f"hydra.launcher.image.builder={name!r} cannot be used: {error}") from error


async def stop_app(name: str) -> None:
    """Stop a deployed app, if it is there: nothing of it runs or is listed as deployed any more."""
    import modal

    try:
        app = await modal.App.lookup.aio(name)
        await app.stop.aio()
    except modal.exception.NotFoundError:
        pass
