-- Health of an SLOService for Argo CD (resource.customizations.health.sloserve.io_SLOService).
local found = {}
local status = obj.status or {}
for _, condition in ipairs(status.conditions or {}) do
  found[condition.type] = condition
end

local generation = obj.metadata.generation
local function now(name, value)
  local condition = found[name]
  return condition ~= nil and condition.status == value
    and (condition.observedGeneration == nil or condition.observedGeneration == generation)
end

if now("Accepted", "False") then
  return {status = "Degraded", message = found["Accepted"].message}
end
if now("Ready", "True") then
  return {status = "Healthy", message = found["Ready"].message}
end
if now("Progressing", "False") and found["Progressing"].reason ~= "Complete" then
  return {status = "Degraded", message = found["Progressing"].message}
end
local message = "waiting for the operator"
if found["Ready"] ~= nil then
  message = found["Ready"].message
end
return {status = "Progressing", message = message}
