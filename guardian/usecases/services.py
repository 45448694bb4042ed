"""All use cases, wired from the ports."""

from __future__ import annotations

from dataclasses import dataclass, field

from guardian.usecases import ports
from guardian.usecases.access import Access
from guardian.usecases.accounts import AccountPolicy, Accounts
from guardian.usecases.api_keys import ApiKeys
from guardian.usecases.cluster import Cluster
from guardian.usecases.configs import Configs
from guardian.usecases.executing import Executor
from guardian.usecases.fitting import Fitting, SchemaBodies
from guardian.usecases.projects import Projects
from guardian.usecases.reading import Reading
from guardian.usecases.roles import Roles
from guardian.usecases.schemas import Schemas


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything the use cases need from the world."""

    log: ports.Log
    state: ports.State
    users: ports.Users
    refresh_tokens: ports.RefreshTokens
    projects: ports.Projects
    roles: ports.Roles
    schemas: ports.Schemas
    passwords: ports.Passwords
    tokens: ports.Tokens
    validator: ports.SchemaValidator
    api_keys: ports.ApiKeyCodec
    clock: ports.Clock
    members: ports.Members
    accounts: AccountPolicy = field(default_factory=AccountPolicy)


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases, one per noun."""

    accounts: Accounts
    projects: Projects
    api_keys: ApiKeys
    roles: Roles
    schemas: Schemas
    configs: Configs
    reading: Reading
    cluster: Cluster

    @classmethod
    def of(cls, world: Ports) -> Services:
        """The services over ``world``."""
        log, state, clock = world.log, world.state, world.clock
        access = Access(log, state, world.roles)
        executor = Executor(log, state)
        bodies = SchemaBodies(world.schemas)
        fitting = Fitting(log, state, bodies, world.validator)
        return cls(
            accounts=Accounts(
                world.users,
                world.refresh_tokens,
                world.passwords,
                world.tokens,
                clock,
                world.accounts,
            ),
            projects=Projects(log, state, access, executor, world.projects, world.api_keys, clock),
            api_keys=ApiKeys(log, state, access, executor, world.api_keys, clock),
            roles=Roles(log, state, access, world.roles),
            schemas=Schemas(
                log,
                state,
                executor,
                world.schemas,
                world.roles,
                bodies,
                fitting,
                world.validator,
                clock,
            ),
            configs=Configs(log, state, access, executor, fitting),
            reading=Reading(log, state, world.api_keys),
            cluster=Cluster(log, state, world.members),
        )
