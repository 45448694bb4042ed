"""What can be asked of Guardian: one verb, one place, over ports only.

``services.Services.of(Ports(...))`` wires them all. Methods take a ``Principal`` and plain values
and return domain entities; every refusal is a ``guardian.domain.problems.Problem``.

=============  =============================================================================
module         verbs
=============  =============================================================================
``accounts``   authenticate register login refresh logout me get list create delete
               ensure_first_admin
``projects``   create list get delete
``api_keys``   list create revoke
``roles``      list grant revoke
``schemas``    create list get update delete
``configs``    create list get update delete revisions revision rollback
``reading``    read (by API key: no Postgres, no JSON parser)
``cluster``    view
=============  =============================================================================

Common to them: ``executing`` (``Consistency`` for reads, ``Call`` and ``Expected`` for writes,
``Seen`` and ``Written`` around what comes back), ``paging`` (``PageRequest``, ``Page``), ``access``
(rights), ``known_users`` (who still has an account), ``fitting`` (documents against schemas),
``throttle`` (failed logins). ``ports`` says what the world must provide.
"""
