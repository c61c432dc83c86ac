"""All children of a service."""

from sloserve_operator import names
from sloserve_operator.api import Obj
from sloserve_operator.children import plain
from sloserve_operator.children.gateway import gateway_deployment
from sloserve_operator.children.monitoring import monitoring
from sloserve_operator.children.network import policies
from sloserve_operator.children.replica import replica_deployment
from sloserve_operator.children.subject import Subject


def render(subject: Subject) -> list[Obj]:
    """
    Every child wanted, in the order of their creation: what pods need comes before pods.

    Raises BadInput that names the field when a podTemplate or a quantity can't be.
    """
    replicas, gateways = replica_deployment(subject), gateway_deployment(subject)
    children = [plain.config_map(subject)]
    for part in (names.REPLICA, names.GATEWAY):
        children.append(plain.service_account(subject, part))
        children.append(plain.disruption_budget(subject, part))
    children += [plain.replica_service(subject), plain.gateway_service(subject)]
    if subject.settings.network_policies:
        children += policies(
            subject,
            replica_template=replicas["spec"]["template"],
            gateway_template=gateways["spec"]["template"],
        )
    return [*children, *monitoring(subject), replicas, gateways]
