/* The extension: lanes over shared memory, the short cut of small messages, and the flights of large ones.

       ring.h      a ring of bytes that two processes share, and why no wake-up is lost; no Python
       lane.c      two rings and a bell: what `shm.py` reads and writes like a socket
       flight.c    a large message, while both sides are there
       port.c      ports, which send a whole small message in one call, and let large ones fly, with values.c,
                   waiting.c, sending.c, receiving.c and adopting.c; and what they share, the hub.c

   `_ring.pyi` says what each call does. All of it is written in the limited API, so that one build serves every Python
   from 3.11 on. What a frame is, who matches it and what credit is, the Python modules say, and nothing here changes
   that. */

#include "lane.h"

PyObject *WireError;

static PyMethodDef functions[] = {
    {"stirring", stirring, METH_O, NULL},
    {"arm_all", arm_all, METH_O, NULL},
    {"spin", spin, METH_VARARGS, NULL},
    {"fly", fly, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_ring", NULL, -1, functions, NULL, NULL, NULL, NULL};

static int add_constants(PyObject *module)
{
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"VERSION", VERSION},         {"EAGER_LIMIT", EAGER_LIMIT}, {"CHUNK", CHUNK}, {"CREDIT", CREDIT},
        {"CREDIT_STEP", CREDIT_STEP}, {"FRAME_COST", FRAME_COST},   {"DATA", RING_DATA},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value)) {
            return -1;
        }
    }
    return 0;
}

PyMODINIT_FUNC PyInit__ring(void)
{
    PyObject *errors = PyImport_ImportModule("rmpi.errors");
    PyObject *module = errors == NULL ? NULL : PyModule_Create(&definition);
    WireError = module == NULL ? NULL : PyObject_GetAttrString(errors, "WireError");
    Py_XDECREF(errors);
    if (WireError == NULL || lane_ready() || hub_ready() || port_ready() || flight_ready() ||
        PyModule_AddObjectRef(module, "Lane", LaneType) || PyModule_AddObjectRef(module, "Hub", HubType) ||
        PyModule_AddObjectRef(module, "Port", PortType) || PyModule_AddObjectRef(module, "Flight", FlightType) ||
        add_constants(module)) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
