"""What KubeRay 1.5.1 takes as a RayJob, at the levels that docs/cluster/rayjob.yaml uses: the names of fields and their types.

Written down from the reference of the ray.io/v1 API (https://ray-project.github.io/kuberay/reference/api/) and, from the pod's template
downwards, of Kubernetes' core/v1 (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/). No name is taken that is
not here, as by `kubectl apply --validate=strict`; of what the manifest does not use only the names are told (`ANY`).
"""

import functools
from typing import Any

Schema = dict[str, Any]
ANY: Schema = {}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def table(needs: str = "", others: str = "", **fields: Schema) -> Schema:
    """A mapping of these fields and, by name alone, of `others`; those in `needs` must be there."""
    return {
        "type": "object",
        "properties": fields | dict.fromkeys(others.split(), ANY),
        "additionalProperties": False,
        "required": needs.split(),
    }


def several(of: Schema, least: int = 0) -> Schema:
    """A list."""
    return {"type": "array", "items": of, "minItems": least}


def one_of(*values: str) -> Schema:
    """One of these texts."""
    return {"enum": list(values)}


@functools.cache
def start_options() -> list[str]:
    """What `ray start` of the installed Ray takes, for `rayStartParams` are its options."""
    from ray.scripts.scripts import start

    return [option.removeprefix("--") for parameter in start.params for option in parameter.opts]


def quantities() -> Schema:
    """Resources of a container: amounts as text or numbers, as 500m, 8Gi, 2."""
    amount = {"type": ["string", "number"], "pattern": r"^[0-9.]+(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
    return table(**{"cpu": amount, "memory": amount, "ephemeral-storage": amount, "nvidia.com/gpu": amount})


def pod() -> Schema:
    """PodTemplateSpec."""
    container = table(
        needs="name",
        name=TEXT,
        image=TEXT,
        resources=table(requests=quantities(), limits=quantities(), others="claims"),
        volumeMounts=several(table(needs="name mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG, subPath=TEXT, subPathExpr=TEXT)),
        others="""command args env envFrom imagePullPolicy lifecycle livenessProbe ports readinessProbe restartPolicy securityContext
            startupProbe terminationMessagePath terminationMessagePolicy volumeDevices workingDir""",
    )
    claim = table(needs="claimName", claimName=TEXT, readOnly=FLAG)
    volume = table(needs="name", name=TEXT, persistentVolumeClaim=claim, others="configMap csi emptyDir ephemeral hostPath nfs secret")
    spec = table(
        needs="containers",
        containers=several(container, least=1),
        volumes=several(volume),
        others="""activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks hostAliases hostIPC
            hostNetwork hostPID imagePullSecrets initContainers nodeName nodeSelector preemptionPolicy priority priorityClassName
            restartPolicy runtimeClassName schedulerName securityContext serviceAccountName shareProcessNamespace
            terminationGracePeriodSeconds tolerations topologySpreadConstraints""",
    )
    return table(metadata=table(labels=TEXTS, annotations=TEXTS), spec=spec)


def group(needs: str, **more: Schema) -> Schema:
    """HeadGroupSpec or WorkerGroupSpec."""
    options = TEXTS | {"propertyNames": {"enum": start_options()}}
    return table(needs=f"rayStartParams template {needs}", rayStartParams=options, template=pod(), **more)


def rayjob() -> Schema:
    """RayJob."""
    autoscaler = table(
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=COUNT,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        others="resources image imagePullPolicy securityContext env envFrom volumeMounts",
    )
    head = group("", serviceType=TEXT, headService=ANY, enableIngress=FLAG)
    counts = {"replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT, "numOfHosts": COUNT}
    workers = group("groupName minReplicas maxReplicas", groupName=TEXT, scaleStrategy=ANY, **counts)
    cluster = table(
        needs="headGroupSpec",
        rayVersion=TEXT,
        enableInTreeAutoscaling=FLAG,
        autoscalerOptions=autoscaler,
        authOptions=table(mode=one_of("disabled", "token")),
        headGroupSpec=head,
        workerGroupSpecs=several(workers),
        others="suspend managedBy headServiceAnnotations gcsFaultToleranceOptions",
    )
    spec = table(
        entrypoint=TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=TEXT,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds=COUNT,
        rayClusterSpec=cluster,
        submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        others="clusterSelector deletionStrategy jobId managedBy metadata runtimeEnvYAML submitterConfig submitterPodTemplate suspend",
    )
    meta = table(needs="name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
    kind = {"apiVersion": one_of("ray.io/v1"), "kind": one_of("RayJob")}
    return table(needs="apiVersion kind metadata spec", metadata=meta, spec=spec, **kind)
