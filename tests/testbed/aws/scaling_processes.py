"""Auto Scaling's calls about hooks, processes, warm pools and refreshes."""

from typing import Any

import group as groups
import hooks
import refresh
import warm
from clock import moment
from errors import validation
from group import Group
from listing import page
from moto.core.responses import ActionResult
from scaling_views import member_view, warm_view


def _found(self: Any) -> Group:
    return groups.find(self.region, self._get_param("AutoScalingGroupName"))


class Processes:
    """Taken over by moto's class of the same calls."""

    def put_lifecycle_hook(self: Any) -> ActionResult:
        hooks.put(_found(self), self._get_params())
        return ActionResult(None)

    def describe_lifecycle_hooks(self: Any) -> ActionResult:
        group = _found(self)
        names = self._get_param("LifecycleHookNames", [])
        shown = [
            {
                "LifecycleHookName": hook.name,
                "AutoScalingGroupName": group.name,
                "LifecycleTransition": hook.transition,
                "HeartbeatTimeout": int(hook.timeout),
                "GlobalTimeout": int(hook.global_timeout),
                "DefaultResult": hook.result,
                "NotificationTargetARN": hook.target,
                "RoleARN": hook.role,
                "NotificationMetadata": hook.metadata,
            }
            for hook in group.hooks.values()
            if not names or hook.name in names
        ]
        return ActionResult({"LifecycleHooks": shown})

    def delete_lifecycle_hook(self: Any) -> ActionResult:
        hooks.delete(_found(self), self._get_param("LifecycleHookName"))
        return ActionResult(None)

    def record_lifecycle_action_heartbeat(self: Any) -> ActionResult:
        group, name = _found(self), self._get_param("LifecycleHookName")
        member = hooks.action(
            group, name, self._get_param("InstanceId"), self._get_param("LifecycleActionToken")
        )
        hooks.ring(group, member, member.waits[name])
        return ActionResult(None)

    def complete_lifecycle_action(self: Any) -> ActionResult:
        group, name = _found(self), self._get_param("LifecycleHookName")
        result = self._get_param("LifecycleActionResult")
        if result not in ("CONTINUE", "ABANDON"):
            raise validation(f"Lifecycle action result {result} is not valid. Use CONTINUE or ABANDON.")
        member = hooks.action(
            group, name, self._get_param("InstanceId"), self._get_param("LifecycleActionToken")
        )
        hooks.finish(group, member, name, result)
        return ActionResult(None)

    def suspend_processes(self: Any) -> ActionResult:
        group = _found(self)
        group.suspended |= set(self._get_param("ScalingProcesses", []) or groups.PROCESSES)
        return ActionResult(None)

    def resume_processes(self: Any) -> ActionResult:
        group = _found(self)
        group.suspended -= set(self._get_param("ScalingProcesses", []) or groups.PROCESSES)
        groups.recheck(group)
        return ActionResult(None)

    def put_warm_pool(self: Any) -> ActionResult:
        group = _found(self)
        if group.given.get("MixedInstancesPolicy"):
            raise validation(
                "You can't add a warm pool to an Auto Scaling group that has a mixed instances policy."
            )
        warm.put(group, self._get_params())
        return ActionResult(None)

    def describe_warm_pool(self: Any) -> ActionResult:
        group = _found(self)
        shown, following = page(
            [member_view(group, member) for member in warm.members(group)],
            self._get_param("NextToken"),
            self._get_int_param("MaxRecords"),
            50,
        )
        result = {"Instances": shown, "NextToken": following}
        if group.warm:
            result["WarmPoolConfiguration"] = warm_view(group)
        return ActionResult(result)

    def delete_warm_pool(self: Any) -> ActionResult:
        warm.delete(_found(self))
        return ActionResult(None)

    def start_instance_refresh(self: Any) -> ActionResult:
        group = _found(self)
        started = refresh.start(group, self._get_param("Preferences") or {})
        return ActionResult({"InstanceRefreshId": started.id})

    def cancel_instance_refresh(self: Any) -> ActionResult:
        return ActionResult({"InstanceRefreshId": refresh.cancel(_found(self)).id})

    def describe_instance_refreshes(self: Any) -> ActionResult:
        group = _found(self)
        ids = self._get_param("InstanceRefreshIds", [])
        shown = [
            {
                "InstanceRefreshId": one.id,
                "AutoScalingGroupName": group.name,
                "Status": one.status,
                "StatusReason": one.reason,
                "StartTime": moment(one.begun),
                "EndTime": moment(one.ended),
                "InstancesToUpdate": len(one.left),
                "PercentageComplete": 100 - 100 * len(one.left) // one.count,
                "Preferences": one.preferences or None,
            }
            for one in group.refreshes
            if not ids or one.id in ids
        ]
        return ActionResult({"InstanceRefreshes": shown})
