"""${message}

Rule of this folder: the code before this step must keep working after it (expand, move, contract), because servers
are replaced one by one. A step has an `upgrade` and a `downgrade`, imports nothing from `registry`, and writes plain
column types. Whatever locks or rewrites a table says here, in one sentence, why that is safe. What readers wait for
(dropping an index or a column) is a step of its own, or locks all of its tables first.

Revision: ${up_revision}
Follows: ${down_revision | comma,n}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
