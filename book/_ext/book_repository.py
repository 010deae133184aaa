"""Repository, issue, Colab and Binder buttons of the pages, from one line."""

from sphinx.application import Sphinx
from sphinx.config import Config


def add_buttons(app: Sphinx, config: Config) -> None:
    """Switch the buttons on if `public_repository` holds an address."""
    if config.public_repository:
        config.html_theme_options |= {
            "repository_url": config.public_repository,
            "repository_branch": "main",
            "use_repository_button": True,
            "use_issues_button": True,
            "launch_buttons": {
                "notebook_interface": "jupyterlab",
                "binderhub_url": "https://mybinder.org",
                "colab_url": "https://colab.research.google.com",
            },
        }


def setup(app: Sphinx) -> dict:
    """Register the setting; the theme reads its options after this."""
    app.add_config_value("public_repository", "", "html", types=[str])
    app.connect("config-inited", add_buttons, priority=100)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
