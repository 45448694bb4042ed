"""The migrations, as plain SQL: ``NNNN_name.up.sql`` and ``NNNN_name.down.sql``.

A file that was released is never changed. The SQL runs on PostgreSQL 14 to 18 without extensions.
Identifiers and keys compare bytewise (``COLLATE "C"``), so that pages come in the same order from
every server; times are Unix milliseconds, as everywhere in Guardian.
"""
