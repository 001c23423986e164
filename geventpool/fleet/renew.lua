-- Who may have how many connections of one cap: geventpool.fleet.share.grant, in Redis.
--
-- KEYS[1]: a hash with a field "epoch", one "learns_until", and one for each process: "p:" and its
-- id, with the numbers of a Record in their order.  ARGV: id, cap, used, has, needs, wants, weight,
-- floor, lease, generation, number, a new epoch, and the place it was given, or nothing.  Answers
-- share, members, epoch, place.
--
-- It runs for each renewal of each process, and Redis does nothing else meanwhile: so there is no
-- JSON in it, no table for a process, and nothing is sorted.

local MEMORY = 6
local max, min, floor_of = math.max, math.min, math.floor

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local id, cap = ARGV[1], tonumber(ARGV[2])
local used, has, needs = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local wants, weight, floor = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local lease, generation, number = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])

local epoch, learns_until = nil, 0
local free, floors, newest, longest, members = cap, floor, generation, lease, 0
-- Of those whose lease has not ended, what they have beyond their floors; this one is the last.
local needed, liked, weights, generations, ids = {}, {}, {}, {}, {}

local function add(id, needs, wants, weight, floor, generation)
    members = members + 1
    needed[members] = max(0, needs - floor)
    liked[members] = max(0, max(0, wants - floor) - needed[members])
    weights[members], generations[members], ids[members] = weight, generation, id
    newest = max(newest, generation)
end

-- The level that the whole reaches, poured into vessels as wide as the weights and as high as what
-- is wanted for each unit of weight; they overflow.
local function water_level(claims, whole)
    local level, last = 0, -1
    while level > last do
        local left, width = whole, 0
        for index = 1, members do
            if claims[index] <= weights[index] * level then
                left = left - claims[index]
            else
                width = width + weights[index]
            end
        end
        last = level
        if width > 0 then level = left / width end
    end
    return last
end

-- What the last one gets of the whole, and what all of them leave.
local function max_min(claims, whole)
    local total = 0
    for index = 1, members do total = total + claims[index] end
    if total <= whole then return claims[members], whole - total end
    if whole <= 0 then return 0, 0 end
    local level, left, given = water_level(claims, whole), whole, {}
    for index = 1, members do
        -- All units up to the water level have a place.
        local height = floor_of(weights[index] * level * (1 - 1e-12))
        given[index] = min(claims[index], height)
        left = left - given[index]
    end
    -- Of those above it, the ones that rank first have one: how many rank before its own?
    local own, weight = given[members], weights[members]
    for unit = own + 1, min(claims[members], own + weight + 1) do
        local rank, before = unit / weight, unit - given[members] - 1
        for index = 1, members - 1 do
            local least = given[index]
            for other = least + 1, min(claims[index], least + weights[index] + 1) do
                local its = other / weights[index]
                if its > rank or its == rank and ids[index] > id then break end
                before = before + 1
            end
        end
        if before >= left then break end
        own = unit
    end
    return own, 0
end

-- What this one is to have beyond its floor.
local function beyond_floor(whole)
    if generation < newest then return 0 end
    for index = 1, members do
        if generations[index] < newest then needed[index], liked[index] = 0, 0 end
    end
    local first, left = max_min(needed, whole)
    local rest = max_min(liked, left)
    return first + rest
end

local fields = redis.call('HGETALL', KEYS[1])
local own, last_share, taken = 'p:' .. id, nil, {}
local place = tonumber(ARGV[13])
for index = 1, #fields, 2 do
    local name, value = fields[index], fields[index + 1]
    if name == 'epoch' then
        epoch = value
    elseif name == 'learns_until' then
        learns_until = tonumber(value)
    else
        local expires, used, has, share, needs, wants, weight, floor, lease, generation, last, its =
            cmsgpack.unpack(value)
        if name == own then
            if number <= last then last_share = share end
            place = its
        elseif now >= expires + MEMORY * lease then
            redis.call('HDEL', KEYS[1], name)
        else
            taken[its] = true
            floors = floors + floor
            longest = max(longest, lease)
            if now < expires then
                free = free - max(share, used, has)
                add(string.sub(name, 3), needs, wants, weight, floor, generation)
            else
                free = free - floor
            end
        end
    end
end
if not epoch then
    epoch, learns_until = ARGV[12], now + lease
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'learns_until', string.format('%.6f', learns_until))
end
add(id, needs, wants, weight, floor, generation)
if last_share then return {last_share, members, epoch, place} end

local share
if now < learns_until then
    share = has
    if share == 0 then share = min(floor, max(free, 0)) end
else
    share = max(0, min(floor + beyond_floor(cap - floors), free))
end

if not place or taken[place] then  -- the lowest that is free
    place = 0
    while taken[place] do place = place + 1 end
end

redis.call('HSET', KEYS[1], own, cmsgpack.pack(
    now + lease, used, has, share, needs, wants, weight, floor, lease, generation, number, place))
redis.call('PEXPIRE', KEYS[1], math.ceil((MEMORY + 1) * longest * 1000))
return {share, members, epoch, place}
