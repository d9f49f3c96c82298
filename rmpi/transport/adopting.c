/* Adopting: the endpoint makes an operation of what a port has begun, and must not forget. */

#include "port.h"

/* Times that a signal handler may raise out of an adoption before something else must be the matter. */
#define MOST_ATTEMPTS 100

/* Call until it succeeds: only a signal handler can make it fail, and what flies must not be forgotten. If one did, the
   operation is in `given` and its exception is set. */
static PyObject *adopt(Port *port, Lane *lane, PyObject *callable, PyObject *args)
{
    PyObject *operation = NULL, *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace); /* there may be an exception already */
    for (int attempt = 0; args != NULL && operation == NULL && attempt < MOST_ATTEMPTS; attempt++) {
        operation = PyObject_Call(callable, args, NULL);
        if (operation == NULL && type == NULL) {
            PyErr_Fetch(&type, &value, &trace);
        }
        PyErr_Clear();
    }
    Py_XDECREF(args);
    if (operation == NULL) {
        lane->closed = 1; /* the stream is torn: nothing may follow */
        lane->quick = 0;
    }
    Py_XINCREF(operation);
    replace(&port->given, operation);
    if (type != NULL) {
        Py_XDECREF(operation);
        operation = NULL;
        PyErr_Restore(type, value, trace);
    }
    return operation;
}

PyObject *adopt_out(Port *port, const struct flight *out, int64_t tag, uint64_t fingerprint, PyObject *value)
{
    return adopt(port, out->lane, port->hub->adopt_send,
                 Py_BuildValue("OKLKOKiKK", out->lane, out->context, (long long)tag, fingerprint, value, out->message,
                               (int)out->stage, out->offset, out->left));
}

/* What has come so far, joined. */
static PyObject *so_far(const struct flight *in)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)in->offset);
    unsigned char *into = bytes == NULL ? NULL : (unsigned char *)PyBytes_AsString(bytes);
    uint64_t left = in->offset;
    for (Py_ssize_t i = 0; into != NULL && left; i++) {
        uint64_t size = in->pieces[i].size < left ? in->pieces[i].size : left;
        memcpy(into, in->pieces[i].at, size);
        into += size;
        left -= size;
    }
    return bytes;
}

PyObject *adopt_in(Port *port, const struct flight *in, const Header *header, const unsigned char *metadata,
                          PyObject *array)
{
    PyObject *begun = array == NULL ? so_far(in) : Py_NewRef(Py_None);
    PyObject *args = NULL;
    if (begun != NULL) {
        args = Py_BuildValue("Oy#y#OOKKK", in->lane, (const char *)header, (Py_ssize_t)HEADER_SIZE,
                             (const char *)metadata, (Py_ssize_t)header->metadata, array == NULL ? Py_None : array,
                             begun, in->offset, in->frame, in->left);
    }
    Py_XDECREF(begun);
    return adopt(port, in->lane, port->hub->adopt_receive, args);
}
