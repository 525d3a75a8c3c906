"""agentrt in AWS: CloudWatch Logs, CloudWatch metrics and X-Ray, and secrets in `agentrt_aws.secrets`."""

from agentrt_aws.logs import CloudWatchLogs
from agentrt_aws.metrics import CloudWatchMetrics
from agentrt_aws.xray import XRay

__all__ = ["CloudWatchLogs", "CloudWatchMetrics", "XRay"]
