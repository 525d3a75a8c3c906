"""The script that counts: one step on the server, whatever other processes do at the same time.

Not the script of the library `limits`: that one takes the time from its caller, so processes whose clocks differ count
different windows; it takes whole seconds; and it does not say when the next hit will be allowed.
"""

from __future__ import annotations

__all__ = ["HIT"]

HIT = """\
-- KEYS[1]: the turns that were given, in microseconds of this server's clock, ascending.
-- ARGV: limit, window (microseconds), cost, how long the caller would wait (microseconds).
-- Gives: 1 or 0 for counted or not, microseconds until the turn, what remains, the turn.
local log = KEYS[1]
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local cost, patience = tonumber(ARGV[3]), tonumber(ARGV[4])

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local function at(index)
  return tonumber(redis.call('LINDEX', log, index))
end

local live, turn = redis.call('LLEN', log), now
if live > 0 then
  local floor, last = now - window, at(-1)
  if last <= floor then
    redis.call('DEL', log)
    live = 0
  else
    if at(0) <= floor then
      -- What has left the window is cut off: at(low) has, at(high) has not.
      local low, high = 0, live - 1
      while high - low > 1 do
        local middle = math.floor((low + high) / 2)
        if at(middle) <= floor then low = middle else high = middle end
      end
      redis.call('LTRIM', log, high, -1)
      live = live - high
    end
    local excess = live + cost - limit
    if excess > 0 then
      turn = math.max(turn, at(excess - 1) + window)
    end
    -- Behind those who booked: nobody overtakes.
    turn = math.max(turn, last)
  end
end

local wait = turn - now
if wait > patience then
  return {0, wait, math.max(0, limit - live), turn}
end

-- tostring() would round to 14 digits.
local entry, pushed = string.format('%.0f', turn), 0
while pushed < cost do
  local some = {}
  for i = 1, math.min(1000, cost - pushed) do some[i] = entry end
  redis.call('RPUSH', log, unpack(some))
  pushed = pushed + #some
end
redis.call('PEXPIRE', log, math.ceil((wait + window) / 1000) + 1)
return {1, wait, math.max(0, limit - live - cost), turn}
"""
