#include "fio.h"
#include "optgroup.h"
