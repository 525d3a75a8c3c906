"""agentrt's telemetry in AWS: CloudWatch Logs, CloudWatch metrics and X-Ray."""

from agentrt_aws.logs import CloudWatchLogs
from agentrt_aws.metrics import CloudWatchMetrics
from agentrt_aws.xray import XRay

__all__ = ["CloudWatchLogs", "CloudWatchMetrics", "XRay"]
